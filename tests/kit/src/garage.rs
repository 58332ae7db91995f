//! A Garage cluster of three nodes on this machine, each object on every one of them.
//!
//! Garage is a program of its own, under a licence of its own: `tests/run` builds it once with cargo
//! into a cache directory (`CASTORE_FS_GARAGE` names another one's binary).

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const BUCKET: &str = "castore";
pub const REGION: &str = "garage";
/// A key as Garage makes them, known to no other cluster.
const KEY: &str = "GKc0ffee00c0ffee00c0ffee00";
pub const SECRET: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e70000";
const RPC_SECRET: &str = "1799bccfd7411eddcf9ebd316bc1f5287ad12a68094e1c6ac6abde7e6feae1ec";

/// The program, if it is installed. If not the test is skipped.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("CASTORE_FS_GARAGE").map(PathBuf::from);
    let cached = || {
        let home = PathBuf::from(std::env::var_os("HOME")?);
        Some(home.join(".cache/castore-fs-tests/garage/bin/garage"))
    };
    let program = named.or_else(cached)?;
    if program.exists() {
        return Some(program);
    }
    crate::skip::skip(&format!(
        "it needs Garage, and there is no {}: `cargo install garage --locked \
         --no-default-features --features bundled-libs,lmdb --root ~/.cache/castore-fs-tests/garage`",
        program.display()
    ));
    None
}

/// Three nodes, a key and a bucket; gone when dropped.
pub struct Cluster {
    program: PathBuf,
    nodes: Vec<Node>,
    dir: tempfile::TempDir,
}

struct Node {
    config: PathBuf,
    s3_port: u16,
    process: Option<Child>,
}

impl Cluster {
    /// Starts one and makes it ready; nothing if Garage is not here.
    pub fn start() -> Option<Self> {
        let program = program()?;
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(6);
        let nodes = ports
            .chunks(2)
            .enumerate()
            .map(|(index, ports)| Node {
                config: write_config(&dir.path().join(index.to_string()), ports),
                s3_port: ports[1],
                process: None,
            })
            .collect();
        let mut cluster = Self {
            program,
            nodes,
            dir,
        };
        (0..3).for_each(|node| cluster.revive(node));
        let ids: Vec<String> = (0..3)
            .map(|node| {
                cluster
                    .until_done(node, &["node", "id", "-q"])
                    .trim()
                    .to_owned()
            })
            .collect();
        for id in &ids[1..] {
            cluster.until_done(0, &["node", "connect", id]);
        }
        for (node, id) in ids.iter().enumerate() {
            let id = id.split('@').next().unwrap();
            let zone = format!("zone{node}");
            cluster.until_done(0, &["layout", "assign", id, "-z", &zone, "-c", "1G"]);
        }
        cluster.until_done(0, &["layout", "apply", "--version", "1"]);
        cluster.until_done(0, &["key", "import", "--yes", KEY, SECRET]);
        cluster.until_done(0, &["bucket", "create", BUCKET]);
        let allow = ["bucket", "allow", "--read", "--write", "--key", KEY, BUCKET];
        cluster.until_done(0, &allow);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(cluster.credentials())
            .unwrap();
        writeln!(
            file,
            "[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}"
        )
        .unwrap();
        Some(cluster)
    }

    /// The file that holds the key.
    pub fn credentials(&self) -> PathBuf {
        self.dir.path().join("credentials")
    }

    /// The URL of a store in the bucket, below `path`, by way of one of the nodes.
    pub fn url(&self, node: usize, path: &str) -> String {
        format!(
            "objectstore+s3://{BUCKET}/{path}?endpoint=http://127.0.0.1:{}&region={REGION}\
             &credentials-file={}",
            self.nodes[node].s3_port,
            self.credentials().display()
        )
    }

    /// Kills a node, as a power cut does.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut process) = self.nodes[node].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts a node, for the first time or again.
    pub fn revive(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let log = node.config.with_extension("log");
        let log = fs::File::options().create(true).append(true).open(log);
        let process = Command::new(&self.program)
            .arg("-c")
            .arg(&node.config)
            .arg("server")
            .env("RUST_LOG", "garage=info")
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        node.process = Some(process);
    }

    /// Sends a node a request, as soon as it accepts one; returns the response.
    fn until_done(&self, node: usize, arguments: &[&str]) -> String {
        let started = Instant::now();
        loop {
            let run = Command::new(&self.program)
                .arg("-c")
                .arg(&self.nodes[node].config)
                .args(arguments)
                .output()
                .unwrap();
            if run.status.success() {
                return String::from_utf8(run.stdout).unwrap();
            }
            let log = self.nodes[node].config.with_extension("log");
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "garage {arguments:?}: {run:?}\n{}",
                fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(250));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..3).for_each(|node| self.kill(node));
    }
}

fn free_ports(count: usize) -> Vec<u16> {
    // Held all at once, so that none is given twice.
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let ports = listeners.iter();
    ports
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

fn write_config(dir: &Path, ports: &[u16]) -> PathBuf {
    fs::create_dir(dir).unwrap();
    let config = dir.with_extension("toml");
    let dir = dir.display();
    let [rpc, s3] = ports else {
        panic!("two ports a node");
    };
    let text = format!(
        "metadata_dir = \"{dir}/meta\"\n\
         data_dir = \"{dir}/data\"\n\
         db_engine = \"lmdb\"\n\
         replication_factor = 3\n\
         rpc_bind_addr = \"127.0.0.1:{rpc}\"\n\
         rpc_public_addr = \"127.0.0.1:{rpc}\"\n\
         rpc_secret = \"{RPC_SECRET}\"\n\
         [s3_api]\n\
         s3_region = \"{REGION}\"\n\
         api_bind_addr = \"127.0.0.1:{s3}\"\n"
    );
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&config);
    file.unwrap().write_all(text.as_bytes()).unwrap();
    config
}
