//! FUSE as a guest's kernel speaks it: requests to bytes, replies from bytes.

pub(crate) const LOOKUP: u32 = 1;
pub(crate) const FORGET: u32 = 2;
pub(crate) const GETATTR: u32 = 3;
pub(crate) const MKDIR: u32 = 9;
pub(crate) const UNLINK: u32 = 10;
pub(crate) const RENAME: u32 = 12;
pub(crate) const READ: u32 = 15;
pub(crate) const INIT: u32 = 26;
pub(crate) const READDIRPLUS: u32 = 44;
pub(crate) const DESTROY: u32 = 38;

/// A request: `struct fuse_in_header` and its body.
pub(crate) fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((40 + body.len() as u32).to_ne_bytes());
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(unique(opcode, node).to_ne_bytes());
    bytes.extend(node.to_ne_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

fn unique(opcode: u32, node: u64) -> u64 {
    u64::from(opcode) << 32 ^ node ^ 0x1234_5678_0000
}

pub(crate) fn init() -> Vec<u8> {
    let words = [7u32, 41, 1 << 20, u32::MAX, u32::MAX >> 1];
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    body.resize(64, 0);
    request(INIT, 0, &body)
}

pub(crate) fn lookup(parent: u64, name: &[u8]) -> Vec<u8> {
    request(LOOKUP, parent, &[name, b"\0"].concat())
}

pub(crate) fn read(node: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(0u64.to_ne_bytes());
    body.extend(offset.to_ne_bytes());
    body.extend(size.to_ne_bytes());
    body.extend([0; 20]);
    request(READ, node, &body)
}

pub(crate) fn read_directory(node: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut bytes = read(node, offset, size);
    bytes[4..8].copy_from_slice(&READDIRPLUS.to_ne_bytes());
    bytes
}

pub(crate) fn forget(node: u64, count: u64) -> Vec<u8> {
    request(FORGET, node, &count.to_ne_bytes())
}

pub(crate) fn get_attributes(node: u64) -> Vec<u8> {
    request(GETATTR, node, &[0; 16])
}

/// The body of a reply, or its errno; fails unless the length in the header is that in the ring.
#[track_caller]
pub(crate) fn body(reply: &[u8]) -> Result<&[u8], i32> {
    assert!(reply.len() >= 16, "a reply of {} bytes", reply.len());
    let length = u32::from_ne_bytes(reply[..4].try_into().unwrap());
    assert_eq!(length as usize, reply.len(), "the used length is another");
    match i32::from_ne_bytes(reply[4..8].try_into().unwrap()) {
        0 => Ok(&reply[16..]),
        error => Err(-error),
    }
}

/// `struct fuse_entry_out`, as far as it is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub node: u64,
    pub seconds: u64,
    pub size: u64,
}

#[track_caller]
pub(crate) fn entry(reply: &[u8]) -> Entry {
    let body = body(reply).unwrap();
    assert_eq!(body.len(), 128);
    Entry {
        node: word(body, 0),
        seconds: word(body, 16),
        size: word(body, 48),
    }
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}
