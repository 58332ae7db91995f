//! A service whose store is a server somewhere else.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::manager::Manager;

/// A server of the store of a [`Manager`], in a process of its own.
pub(crate) struct Server {
    child: Child,
    pub address: std::net::SocketAddr,
}

impl Server {
    pub(crate) fn start(manager: &Manager) -> Self {
        let address = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap()
        };
        let store = format!("local:{}", manager.join("store").display());
        let child = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .args(["serve", "--store", &store, "--listen", &address.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "no server");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration with one mount of the store at `address`, and with `more` in the mount.
pub(crate) fn config_of(address: std::net::SocketAddr, more: &str) -> String {
    format!("[stores.far]\nurl = 'grpc+http://{address}'\n[mounts.tree]\npath = '@/mnt'\n{more}\n")
}
