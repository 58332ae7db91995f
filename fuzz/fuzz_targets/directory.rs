//! Whatever the Directory decoder accepts is canonical: prost reads it and writes the same bytes, and
//! so does our own encoder.
#![no_main]

use castore_fs::castore::{Directory, Name};
use castore_fs::proto::castore::v1 as proto;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(directory) = Directory::decode(data) else {
        return;
    };
    let message = proto::Directory::decode(data).expect("prost reads what we accept");
    assert_eq!(message.encode_to_vec(), data);

    let mut entries = Vec::new();
    for (index, entry) in directory.iter().enumerate() {
        assert_eq!(directory.find(entry.name), Some(index));
        let name = Name::new(entry.name).expect("names are checked");
        entries.push((name, entry.node.to_owned().expect("targets are checked")));
    }
    let again = Directory::from_entries(entries).expect("it was a Directory");
    assert_eq!(again.as_bytes(), data);
    assert_eq!(again.size(), directory.size());
});
