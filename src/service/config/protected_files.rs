//! The files that a service with this configuration opens while it serves: none of its mounts may
//! hide one.

use std::collections::BTreeSet;
use std::net::ToSocketAddrs;
use std::path::Path;

use super::{Config, ConfigProblem, problem};
use crate::server::load_secret_key;
use crate::store::shown_url;
use crate::transport::fuse::ProtectedFiles;

impl Config {
    /// The files and directories that the service of the configuration `file` uses.
    pub fn protected_files(&self, file: &Path) -> ProtectedFiles {
        let mut files = ProtectedFiles::default();
        files.add("its configuration file", file);
        files.add("its state directory", self.state_dir());
        files.add("its profiles", self.profiles());
        files.add("its control socket", self.control_socket());
        if let Some(path) = socket_path(self.metrics.address.as_deref()) {
            files.add("its socket for metrics", path);
        }
        for (name, listen) in self.all_listeners() {
            if let Some(path) = socket_path(Some(&listen.address)) {
                files.add(format!("the socket of the listener {name:?}"), path);
            }
            for (key, path) in [
                ("tls-cert-path", listen.tls_cert_path),
                ("tls-key-path", listen.tls_key_path),
                ("tls-client-ca-path", listen.tls_client_ca_path),
                ("token-file", listen.token_file),
                ("secret-key-file", listen.secret_key_file),
            ] {
                if let Some(path) = path {
                    files.add(format!("the {key} of the listener {name:?}"), path);
                }
            }
        }
        for (name, virtiofs) in &self.virtiofs {
            let what = format!("the socket of the device {name:?}");
            files.add(what, &virtiofs.socket);
        }
        for named in self.plans() {
            files.extend(named.plan.used_files());
        }
        files
    }

    /// As [`load`](Self::load), and checks mount points against the files of this machine as the
    /// service does before it mounts. Touches no mount of castore-fs. If it `reads_files`, those that list the
    /// rights of clients are read, and the addresses to listen on looked up, as the service does before it
    /// serves.
    pub fn load_with_files(file: &Path, reads_files: bool) -> Result<Self, Vec<ConfigProblem>> {
        let text = Self::read(file)?;
        let source = problem::ConfigText::new(file, &text);
        let (config, mut problems) = Self::parse_all(&text, &source);
        let Some(config) = config else {
            return Err(problems);
        };
        let of_machine = config.check_machine(file, &source, reads_files);
        // A table with a mistake may not mean what it says.
        let table = |key: &str| {
            key.split('.')
                .take(2)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let wrong: BTreeSet<_> = problems.iter().map(|problem| table(&problem.key)).collect();
        let of_machine = of_machine.into_iter();
        problems.extend(of_machine.filter(|problem| !wrong.contains(&table(&problem.key))));
        match problems.is_empty() {
            true => Ok(config),
            false => Err(problems),
        }
    }

    fn check_machine(
        &self,
        file: &Path,
        source: &problem::ConfigText<'_>,
        reads_files: bool,
    ) -> Vec<ConfigProblem> {
        let files = self.protected_files(file);
        let mut problems = Vec::new();
        for (name, mount) in &self.mounts {
            if let Err(error) = files.check(&mount.path) {
                problems.push(source.at(&["mounts", name, "path"], error.to_string()));
            }
        }
        if reads_files {
            self.check_endpoints(source, &mut problems);
        }
        problems
    }

    fn check_endpoints(&self, source: &problem::ConfigText<'_>, problems: &mut Vec<ConfigProblem>) {
        let unknown = |address: &str| {
            let is_tcp = !address.starts_with("unix:") && !address.starts_with("systemd:");
            let found = is_tcp.then(|| address.to_socket_addrs().err()).flatten();
            found.map(|error| format!("{}: {error}", shown_url(address)))
        };
        for (name, listen) in &self.listen {
            if let Err(error) = listen.access().load() {
                problems.push(source.at(&["listen", name], error.to_string()));
            }
            if let Some(Err(error)) = listen.secret_key_file.as_ref().map(load_secret_key) {
                let key = ["listen", name, "secret-key-file"];
                problems.push(source.at(&key, error.to_string()));
            }
            if let Some(what) = unknown(&listen.address) {
                problems.push(source.at(&["listen", name, "address"], what));
            }
        }
        if let Some(what) = self.metrics.address.as_deref().and_then(unknown) {
            problems.push(source.at(&["metrics", "address"], what));
        }
    }
}

/// The path of an address of the form `unix:/PATH`.
fn socket_path(address: Option<&str>) -> Option<&str> {
    address?.strip_prefix("unix:")
}
