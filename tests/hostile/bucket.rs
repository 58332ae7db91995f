//! A hostile object store: wrong lengths, endless answers, objects that unpack to too much.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use castore_fs::castore::{Digest, Directory, Name, Node};
use castore_fs::store::{Error, ObjectStore, Store};
use parking_lot::Mutex;

/// What is answered to a GET.
#[derive(Clone)]
enum Object {
    Bytes(Vec<u8>),
    /// States a length of 2^40 bytes and sends zeros for as long as they are read.
    Endless,
    /// Sends on to itself.
    Redirect,
    /// "Service Unavailable" so many times, then the bytes.
    Busy(u64, Vec<u8>),
}

#[derive(Default)]
struct Shared {
    objects: Mutex<BTreeMap<String, Object>>,
    requests: AtomicU64,
    sent: AtomicU64,
}

struct HostileBucket {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl HostileBucket {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let serving = shared.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let shared = serving.clone();
                std::thread::spawn(move || answer_all(&shared, connection.unwrap()).ok());
            }
        });
        Self { shared, address }
    }

    fn put(&self, kind: &str, digest: &Digest, object: Object) {
        let hex = digest.to_hex();
        let path = format!("/{kind}/b3/{}/{hex}", &hex[..4]);
        self.shared.objects.lock().insert(path, object);
    }

    fn store(&self) -> ObjectStore {
        ObjectStore::open(&format!("objectstore+http://{}/", self.address)).unwrap()
    }

    fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

/// A page of a listing as S3 has it, with the token of itself as the next one.
const PAGE: &str = "<?xml version=\"1.0\"?><ListBucketResult><Name>bucket</Name><KeyCount>1</KeyCount>\
    <MaxKeys>1</MaxKeys><IsTruncated>true</IsTruncated><Contents>\
    <Key>castore-fs/roots/b3/0000/0000</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>\
    <ETag>1</ETag><Size>1</Size></Contents><NextContinuationToken>again</NextContinuationToken>\
    </ListBucketResult>";

fn answer_all(shared: &Shared, connection: TcpStream) -> std::io::Result<()> {
    let mut writes = connection.try_clone()?;
    let mut lines = BufReader::new(connection).lines();
    while let Some(request) = lines.next().transpose()? {
        while lines
            .next()
            .transpose()?
            .is_some_and(|line| !line.is_empty())
        {}
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let object = match path.contains("list-type=2") {
            true => Some(Object::Bytes(PAGE.as_bytes().to_vec())),
            false => shared.objects.lock().get(&path).cloned(),
        };
        let mut head = |status: &str, length: u64| {
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"1\"\r\n\
                 Last-Modified: Thu, 01 Jan 1970 00:00:01 GMT\r\n\r\n"
            );
            writes.write_all(head.as_bytes())
        };
        match object {
            None => head("404 Not Found", 0)?,
            Some(Object::Bytes(bytes)) => {
                head("200 OK", bytes.len() as u64)?;
                writes.write_all(&bytes)?;
            }
            Some(Object::Busy(0, bytes)) => {
                head("200 OK", bytes.len() as u64)?;
                writes.write_all(&bytes)?;
            }
            Some(Object::Busy(times, bytes)) => {
                let remaining = Object::Busy(times - 1, bytes);
                shared.objects.lock().insert(path, remaining);
                head("503 Service Unavailable", 0)?;
            }
            Some(Object::Redirect) => {
                head(&format!("302 Found\r\nLocation: {path}"), 0)?;
            }
            Some(Object::Endless) => {
                head("200 OK", 1 << 40)?;
                let zeros = vec![0; 64 << 10];
                loop {
                    writes.write_all(&zeros)?;
                    shared.sent.fetch_add(zeros.len() as u64, Ordering::Relaxed);
                }
            }
        }
    }
    Ok(())
}

/// zstd of so many MiB of zeros.
fn bomb(mebibytes: usize) -> Vec<u8> {
    let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        packer.write_all(&zeros).unwrap();
    }
    packer.finish().unwrap()
}

/// Bytes of an aborted answer that two sockets and the client may hold.
const UNDER_WAY: u64 = 32 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_length_costs_nothing() {
    let bucket = HostileBucket::start();
    let blob = b"a small blob";
    let digest = Digest::of(blob);
    bucket.put("blobs", &digest, Object::Bytes(Vec::new()));
    bucket.put("chunks", &digest, Object::Endless);
    let store = bucket.store();
    let error = store.read(&digest, 12, 0, 12).await.unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
    let directory = Digest::of(b"a directory");
    bucket.put("dirs", &directory, Object::Endless);
    assert!(store.directory(&directory).await.is_err());
    let list = Digest::of(b"with an endless list");
    bucket.put("blobs", &list, Object::Endless);
    assert!(store.read(&list, 1 << 20, 0, 12).await.is_err());
    let root = Digest::of(b"root");
    bucket.put("castore-fs/roots", &root, Object::Endless);
    assert!(store.root(b"root").await.is_err());
    // The list of chunks may have 32 MiB.
    let sent = bucket.shared.sent.load(Ordering::Relaxed);
    assert!(sent < (32 << 20) + 4 * UNDER_WAY, "{sent} bytes sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_unpacks_to_more_than_it_should_is_refused_where_it_goes_wrong() {
    let bucket = HostileBucket::start();
    let digest = Digest::of(b"a small blob");
    bucket.put("blobs", &digest, Object::Bytes(Vec::new()));
    bucket.put("chunks", &digest, Object::Bytes(bomb(1000)));
    let store = bucket.store();
    let error = store.read(&digest, 12, 0, 12).await.unwrap_err();
    assert!(error.to_string().contains("unpacks to more"), "{error}");
    // A closure: zeros are empty Directories that nothing refers to.
    let root = Directory::from_entries(vec![(
        Name::new(b"file").unwrap(),
        Node::File {
            digest,
            size: 12,
            executable: false,
        },
    )])
    .unwrap();
    let packed = |plain: &[u8]| Object::Bytes(zstd::encode_all(plain, 3).unwrap());
    let length = (root.as_bytes().len() as u32).to_be_bytes();
    let start = [&length[..], root.as_bytes()].concat();
    bucket.put("dirs", &root.digest(), Object::Bytes(bomb(4000)));
    assert!(store.directory(&root.digest()).await.is_err());
    // A sound one, and then a Directory with a stated size of a gigabyte.
    let giant = [&start[..], &(1u32 << 30).to_be_bytes(), &[0; 1000]].concat();
    bucket.put("dirs", &root.digest(), packed(&giant));
    let error = store.directory(&root.digest()).await.unwrap_err();
    assert!(error.to_string().contains("1073741824 bytes"), "{error}");
    // One that ends before all of it came.
    let above = Directory::from_entries(vec![(Name::new(b"d").unwrap(), root.node())]).unwrap();
    let length = (above.as_bytes().len() as u32).to_be_bytes();
    let half = [&length[..], above.as_bytes()].concat();
    bucket.put("dirs", &above.digest(), packed(&half));
    let error = store.directory(&above.digest()).await.unwrap_err();
    assert!(error.to_string().contains("too early"), "{error}");
    bucket.put(
        "dirs",
        &above.digest(),
        packed(&[half, start.clone()].concat()),
    );
    assert!(store.directory(&above.digest()).await.unwrap().is_some());
    // Unpacking needs more than 8 MiB.
    let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    packer.window_log(27).unwrap();
    packer.write_all(&vec![7; 200 << 20]).unwrap();
    let wide = Digest::of(b"wide");
    bucket.put("dirs", &wide, Object::Bytes(packer.finish().unwrap()));
    let error = store.directory(&wide).await.unwrap_err();
    assert!(error.to_string().contains("too much memory"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_a_busy_service_is_made_three_times() {
    let bucket = HostileBucket::start();
    let root = Directory::from_entries(Vec::new()).unwrap();
    let above = Directory::from_entries(vec![(Name::new(b"d").unwrap(), root.node())]).unwrap();
    let length = (above.as_bytes().len() as u32).to_be_bytes();
    let packed = zstd::encode_all(&[&length[..], above.as_bytes()].concat()[..], 3).unwrap();
    bucket.put("dirs", &above.digest(), Object::Busy(2, packed.clone()));
    let store = bucket.store();
    assert!(store.directory(&above.digest()).await.unwrap().is_some());
    assert_eq!(bucket.requests(), 3);
    let other = Digest::of(b"never");
    bucket.put("dirs", &other, Object::Busy(u64::MAX, packed));
    let error = store.directory(&other).await.unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
    assert_eq!(bucket.requests(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_refers_to_itself_ends() {
    let bucket = HostileBucket::start();
    let url = format!(
        "objectstore+s3://bucket/?endpoint=http://{}&region=x&skip_signature=true",
        bucket.address
    );
    let store = ObjectStore::open(&url).unwrap();
    let error = store.roots().await.unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
    assert!(bucket.requests() < 10, "{}", bucket.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_itself_ends() {
    let bucket = HostileBucket::start();
    let (directory, blob) = (Digest::of(b"directory"), Digest::of(b"a small blob"));
    bucket.put("dirs", &directory, Object::Redirect);
    bucket.put("blobs", &blob, Object::Redirect);
    let store = bucket.store();
    assert!(store.directory(&directory).await.is_err());
    assert!(store.read(&blob, 12, 0, 12).await.is_err());
    assert!(bucket.requests() < 100, "{}", bucket.requests());
}
