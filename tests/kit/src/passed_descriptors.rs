//! Sockets passed on as systemd does it (sd_listen_fds(3)).

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Starts `command`, less its environment, with `socket` as the one that systemd listens on for it.
pub fn start_with(command: &Command, socket: UnixListener) -> Child {
    // Descriptor 3, and LISTEN_PID is its owner, which only the child can know.
    let line = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(line).arg(command.get_program());
    shell.args(command.get_args());
    let number = socket.as_raw_fd();
    let pass = move || {
        // SAFETY: copies a descriptor, or changes a flag of one, which may be done between fork and
        // exec; what 3 was is the child's copy of something that closes on exec anyway.
        let done = unsafe {
            match number {
                3 => libc::fcntl(3, libc::F_SETFD, 0),
                _ => libc::dup2(number, 3),
            }
        };
        match done {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: makes one system call and allocates nothing.
    unsafe { shell.pre_exec(pass) };
    shell.spawn().unwrap()
}
