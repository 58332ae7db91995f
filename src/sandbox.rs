//! The sandbox: giving up privileges before input from an untrusted peer is read.
//!
//! A process that serves guests or clients parses their messages. If one of them takes the process
//! over, it should reach nothing but the store, which it could read anyway. So the process, once
//! its sockets are made, gives up
//!
//! | what | by |
//! |---|---|
//! | all capabilities, and every way to gain some | capset(2), `PR_SET_NO_NEW_PRIVS` |
//! | all files but the store's | Landlock |
//! | TCP, unless there is an upstream; other processes' abstract sockets and signals | Landlock |
//! | system calls that it never makes | seccomp (`syscalls`) |
//! | more descriptors than it will need | `RLIMIT_NOFILE` |
//!
//! This covers the calling thread and those that it starts, so it has to come before all others. A
//! layer that an old kernel lacks is left out and logged: a weaker sandbox is better than a service
//! that does not start.

mod syscalls;

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use thiserror::Error;

/// The newest Landlock version in use; the kernel's may be older.
const LANDLOCK: ABI = ABI::V6;

/// What a process keeps access to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Files and directories to read.
    pub read: Vec<PathBuf>,
    /// Directories to read and write.
    pub write: Vec<PathBuf>,
    /// Whether to connect to other machines, and to sockets of this one.
    pub network: bool,
    /// Descriptors to have open, at most; as many as before if it is none.
    pub open_files: Option<u64>,
}

/// Which layers are in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxLayers {
    /// Whether files are confined: not on kernels older than 5.13, or without Landlock.
    pub files: bool,
    /// Whether system calls are: not on kernels without seccomp.
    pub system_calls: bool,
}

/// A layer of the sandbox that failed although the kernel has it.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The limit of open files.
    #[error("cannot limit the number of open files: {0}")]
    OpenFiles(io::Error),
    /// No new privileges, or the capabilities.
    #[error("cannot give up privileges: {0}")]
    Privileges(io::Error),
    /// Landlock.
    #[error("cannot confine the process to its files: {0}")]
    Files(#[from] RulesetError),
    /// Seccomp.
    #[error("cannot confine the process to its system calls: {0}")]
    SystemCalls(#[from] seccompiler::Error),
}

impl Sandbox {
    /// Confines the calling thread and all threads and processes that it will start.
    pub fn enter(&self) -> Result<SandboxLayers, SandboxError> {
        self.limit_open_files()?;
        give_up_privileges()?;
        let files = self.confine_files()?;
        let system_calls = match syscalls::confine(self.network) {
            Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))
                if lacks_seccomp(&error) =>
            {
                false
            }
            confined => confined.map(|()| true)?,
        };
        Ok(SandboxLayers {
            files,
            system_calls,
        })
    }

    fn limit_open_files(&self) -> Result<(), SandboxError> {
        let Some(open_files) = self.open_files else {
            return Ok(());
        };
        let most = getrlimit(Resource::Nofile).maximum;
        let wanted = most.map_or(open_files, |most| most.min(open_files));
        let limit = Rlimit {
            current: Some(wanted),
            maximum: Some(wanted),
        };
        setrlimit(Resource::Nofile, limit).map_err(|errno| SandboxError::OpenFiles(errno.into()))
    }

    /// Confines file access; returns whether the kernel has Landlock.
    fn confine_files(&self) -> Result<bool, SandboxError> {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?;
        if !self.network {
            ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK))?;
        }
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = AccessFs::from_all(LANDLOCK) & !AccessFs::Execute;
        let status = ruleset
            .create()?
            .add_rules(path_beneath_rules(&self.read, read))?
            .add_rules(path_beneath_rules(&self.write, write))?
            .restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }
}

/// Whether `error` means that the kernel was built without seccomp.
fn lacks_seccomp(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS))
}

/// Gives up all capabilities, and every way to gain some: for a process that has to start programs.
pub fn give_up_privileges() -> Result<(), SandboxError> {
    let failed = |errno: rustix::io::Errno| SandboxError::Privileges(errno.into());
    set_no_new_privs(true).map_err(failed)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed)
}
