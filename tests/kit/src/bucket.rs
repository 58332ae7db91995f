//! An S3 service in memory, with a clock that a test moves, a record of the requests, and faults.
//!
//! It has what the crate `object_store` uses: GET, HEAD, PUT and DELETE of an object, also on conditions,
//! DeleteObjects, and ListObjectsV2 in pages of [`PAGE`] keys.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Keys in a page of a listing.
const PAGE: usize = 7;

/// An object, and when it was written: seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    pub bytes: Vec<u8>,
    pub modified: u64,
}

type Hook = Box<dyn FnMut(&str) -> Option<u16> + Send>;

/// The service.
pub struct S3Bucket {
    shared: Arc<Shared>,
    address: SocketAddr,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, StoredObject>,
    now: u64,
    requests: Vec<String>,
    /// Listings with this in their prefix repeat their first page.
    repeated: Option<&'static str>,
}

impl S3Bucket {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        // 14 November 2023: no test may depend on the machine's clock.
        shared.state().now = 1_700_000_000;
        let serving = shared.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let shared = serving.clone();
                std::thread::spawn(move || shared.answer_all(connection.unwrap()).ok());
            }
        });
        Self { shared, address }
    }

    /// The URL of a store below `store/`.
    pub fn url(&self) -> String {
        format!(
            "objectstore+s3://bucket/store?endpoint=http://{}&region=x&skip_signature=true",
            self.address
        )
    }

    /// Seconds since 1970, by the service's clock.
    pub fn now(&self) -> u64 {
        self.shared.state().now
    }

    pub fn advance(&self, time: Duration) {
        self.shared.state().now += time.as_secs();
    }

    /// Every object below `store/`, by its path there.
    pub fn objects(&self) -> BTreeMap<String, StoredObject> {
        let state = self.shared.state();
        let below = |(key, object): (&String, &StoredObject)| {
            Some((key.strip_prefix("store/")?.to_owned(), object.clone()))
        };
        state.objects.iter().filter_map(below).collect()
    }

    /// The paths of the objects that a collection may delete.
    pub fn collected(&self) -> Vec<String> {
        let all = self.objects().into_keys();
        all.filter(|path| !path.starts_with("castore-fs/"))
            .collect()
    }

    pub fn put(&self, path: &str, bytes: &[u8]) {
        let mut state = self.shared.state();
        let modified = state.now;
        let object = StoredObject {
            bytes: bytes.to_vec(),
            modified,
        };
        state.objects.insert(format!("store/{path}"), object);
    }

    pub fn remove(&self, path: &str) {
        let mut state = self.shared.state();
        state.objects.remove(&format!("store/{path}")).unwrap();
    }

    /// Requests since the last call: method, and path with query.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.state().requests)
    }

    /// From now on the next page of a listing is the first one, if its prefix contains `prefix`.
    pub fn repeat_pages(&self, prefix: &'static str) {
        self.shared.state().repeated = Some(prefix);
    }

    /// Calls `hook` with each request before it is answered; a status that it returns is the answer. Requests
    /// that come while it runs do not get to it.
    pub fn hook(&self, hook: impl FnMut(&str) -> Option<u16> + Send + 'static) {
        *self.shared.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn unhook(&self) {
        *self.shared.hook.lock().unwrap() = None;
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn empty(status: u16) -> Self {
        Self {
            status,
            headers: String::new(),
            body: Vec::new(),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn answer_all(&self, connection: TcpStream) -> std::io::Result<()> {
        connection.set_nodelay(true)?;
        let mut writes = connection.try_clone()?;
        let mut reads = BufReader::new(connection);
        loop {
            let mut line = String::new();
            if reads.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut headers = BTreeMap::new();
            loop {
                let mut header = String::new();
                reads.read_line(&mut header)?;
                let Some((name, value)) = header.trim_end().split_once(':') else {
                    break;
                };
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            let length = headers.get("content-length");
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            reads.read_exact(&mut body)?;
            let mut words = line.split(' ');
            let (method, target) = (words.next().unwrap(), words.next().unwrap());
            let request = format!("{method} {target}");
            self.state().requests.push(request.clone());
            // Taken out meanwhile: the hook may make requests itself.
            let hook = self.hook.lock().unwrap().take();
            let fault = hook.and_then(|mut hook| {
                let fault = hook(&request);
                self.hook.lock().unwrap().get_or_insert(hook);
                fault
            });
            let answer = match fault {
                Some(status) => Answer::empty(status),
                None => self.state().answer(method, target, &headers, body),
            };
            let date = date(self.state().now, "%a, %d %b %Y %H:%M:%S GMT");
            let head = format!(
                "HTTP/1.1 {} x\r\nContent-Length: {}\r\nDate: {date}\r\n{}\r\n",
                answer.status,
                answer.body.len(),
                answer.headers
            );
            writes.write_all(head.as_bytes())?;
            if method != "HEAD" {
                writes.write_all(&answer.body)?;
            }
        }
    }
}

impl State {
    fn answer(
        &mut self,
        method: &str,
        target: &str,
        headers: &BTreeMap<String, String>,
        body: Vec<u8>,
    ) -> Answer {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let key = decoded(path).strip_prefix("/bucket").unwrap().to_owned();
        let key = key.trim_start_matches('/').to_owned();
        let header = |name: &str| headers.get(name).map(String::as_str);
        let e_tag = self.objects.get(&key).map(e_tag);
        match method {
            "GET" if query.contains("list-type=2") => self.list(query),
            "POST" => {
                let body = String::from_utf8(body).unwrap();
                let keys = body.split("<Key>").skip(1);
                let mut deleted = String::new();
                for key in keys.map(|key| key.split('<').next().unwrap()) {
                    self.objects.remove(key);
                    deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
                }
                Answer {
                    body: format!("<DeleteResult>{deleted}</DeleteResult>").into_bytes(),
                    ..Answer::empty(200)
                }
            }
            "GET" | "HEAD" => match self.objects.get(&key) {
                None => Answer::empty(404),
                Some(_)
                    if header("if-none-match").is_some_and(|tag| Some(tag) == e_tag.as_deref()) =>
                {
                    Answer::empty(304)
                }
                Some(object) => Answer {
                    status: 200,
                    headers: format!(
                        "Last-Modified: {}\r\nETag: {}\r\n",
                        date(object.modified, "%a, %d %b %Y %H:%M:%S GMT"),
                        e_tag.unwrap()
                    ),
                    body: object.bytes.clone(),
                },
            },
            "PUT" => {
                let taken = header("if-none-match") == Some("*") && e_tag.is_some();
                let other = header("if-match").is_some_and(|tag| Some(tag) != e_tag.as_deref());
                if taken || other {
                    return Answer::empty(412);
                }
                let object = StoredObject {
                    bytes: body,
                    modified: self.now,
                };
                let headers = format!("ETag: {}\r\n", self::e_tag(&object));
                self.objects.insert(key, object);
                Answer {
                    headers,
                    ..Answer::empty(200)
                }
            }
            "DELETE" => {
                self.objects.remove(&key);
                Answer::empty(204)
            }
            _ => Answer::empty(400),
        }
    }

    fn list(&self, query: &str) -> Answer {
        let parameter = |name: &str| {
            let mut all = query.split('&').filter_map(|one| one.split_once('='));
            all.find(|(own, _)| *own == name)
                .map(|(_, value)| decoded(value))
        };
        let prefix = parameter("prefix").unwrap_or_default();
        let is_repeated = self.repeated.is_some_and(|text| prefix.contains(text));
        let after = parameter("continuation-token").filter(|_| !is_repeated);
        let after = after.unwrap_or_default();
        let mut keys = self.objects.iter();
        let mut page = String::new();
        let (mut listed, mut last) = (0, "");
        let next = loop {
            let Some((key, object)) = keys.next() else {
                break String::new();
            };
            if !key.starts_with(&prefix) || *key <= after {
                continue;
            }
            if listed == PAGE {
                break format!("<NextContinuationToken>{last}</NextContinuationToken>");
            }
            (listed, last) = (listed + 1, key);
            page += &format!(
                "<Contents><Key>{key}</Key><LastModified>{}</LastModified><ETag>x</ETag><Size>{}</Size></Contents>",
                date(object.modified, "%Y-%m-%dT%H:%M:%S.000Z"),
                object.bytes.len()
            );
        };
        let body = format!(
            "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>{}</IsTruncated>{page}{next}</ListBucketResult>",
            !next.is_empty()
        );
        Answer {
            body: body.into_bytes(),
            ..Answer::empty(200)
        }
    }
}

fn e_tag(object: &StoredObject) -> String {
    format!("\"{}\"", &blake3::hash(&object.bytes).to_hex()[..32])
}

fn date(seconds: u64, format: &str) -> String {
    let time = chrono::DateTime::from_timestamp(seconds as i64, 0).unwrap();
    time.format(format).to_string()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let hex = std::str::from_utf8(&rest[..2]).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}
