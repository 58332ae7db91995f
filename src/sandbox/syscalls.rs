//! The system calls that serving a store needs.
//!
//! Any other call fails with EPERM. That never happens, unless a system library begins to use a new
//! call, in which case it falls back to the old one or reports the error. Killing the process
//! instead would take the disks of its guests along.
//!
//! The calls that an intruder would want are missing: no program is run, no other process is
//! accessed, nothing is mounted, no memory becomes executable by `mprotect` where seccomp can see
//! it, and without an upstream there is no new socket.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// Memory, threads and time: used by the runtime.
const RUNTIME: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_uname,
];

/// Descriptors of any kind.
const DESCRIPTORS: &[i64] = &[
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Files: Landlock restricts which.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_geteuid,
    libc::SYS_getuid,
    libc::SYS_getegid,
    libc::SYS_getgid,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
];

/// Existing sockets, and those of new clients.
const SOCKETS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
];

/// New connections, to an upstream.
const NETWORK: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_socket,
];

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// Installs the filter for the calling thread and those that it starts.
pub(super) fn confine(network: bool) -> Result<(), seccompiler::Error> {
    // On architectures that seccompiler does not support, the other layers remain.
    let Ok(architecture) = std::env::consts::ARCH.try_into() else {
        return Ok(());
    };
    let install = |rules, otherwise, then| {
        let filter = SeccompFilter::new(rules, otherwise, then, architecture)?;
        let program: BpfProgram = filter.try_into()?;
        apply_filter(&program)
    };
    // The arguments of clone3 are in memory, which a filter cannot read. The C library falls back
    // to clone only for ENOSYS.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let not_implemented = SeccompAction::Errno(libc::ENOSYS as u32);
    install(clone3, SeccompAction::Allow, not_implemented)?;
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    install(rules(network)?, denied, SeccompAction::Allow)
}

fn rules(upstream: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::Error> {
    let network = if upstream { NETWORK } else { &[] };
    let lists = [RUNTIME, DESCRIPTORS, FILES, SOCKETS, network, OLDER];
    let calls = lists.into_iter().flatten();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls.map(|call| (*call, Vec::new())).collect();
    // Memory that becomes executable is how an intruder runs code of its own. Resolving names of
    // other machines, however, loads libraries.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let rule = match upstream {
            true => Vec::new(),
            false => vec![without(2, libc::PROT_EXEC as u64)?],
        };
        rules.insert(call, rule);
    }
    // The filter before this one answers it.
    rules.insert(libc::SYS_clone3, Vec::new());
    // A thread, but no process.
    let threads = libc::CLONE_THREAD as u64;
    let is_thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(threads),
        threads,
    )?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
    // Only to set a descriptor's modes, and to query what is readable.
    let requests: [u64; 3] = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX];
    let one_of = requests.map(|request| {
        let dword = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(1, dword, SeccompCmpOp::Eq, request)?;
        SeccompRule::new(vec![condition])
    });
    let one_of: Result<Vec<_>, _> = one_of.into_iter().collect();
    rules.insert(libc::SYS_ioctl, one_of?);
    Ok(rules)
}

/// Allowed unless the argument has any of `bits`.
fn without(argument: u8, bits: u64) -> Result<SeccompRule, seccompiler::Error> {
    let condition = SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(bits),
        0,
    )?;
    Ok(SeccompRule::new(vec![condition])?)
}
