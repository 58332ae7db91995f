//! The program under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The `castore-fs` that Cargo built with the test: beside the directory that test programs are in.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("castore-fs");
    assert!(program.exists(), "{} is not built", program.display());
    program
}

/// A directory in which the program runs, as a user runs it there.
pub struct WorkingDirectory {
    dir: tempfile::TempDir,
    variables: &'static [(&'static str, &'static str)],
}

impl WorkingDirectory {
    /// An empty one; the program gets `variables` in its environment.
    pub fn new(variables: &'static [(&'static str, &'static str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, variables }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).current_dir(self.dir.path());
        command
            .env_remove("RUST_LOG")
            .env_remove("CASTORE_FS_STORE")
            .envs(self.variables.iter().copied());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that has to succeed.
    #[track_caller]
    pub fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let reported = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {reported}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a command that has to fail, with the status 1.
    #[track_caller]
    pub fn bad(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}
