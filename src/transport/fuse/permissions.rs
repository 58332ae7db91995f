//! Who checks permissions.
//!
//! A mount that this program or fusermount3 makes has `default_permissions`: the kernel checks modes
//! itself. One that another program made and passed on need not have it.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

/// Whether the mount that `device` serves has `default_permissions`, as far as this process can see it:
/// the kernel has to name the connection in `fdinfo` (Linux 6.18 does), and the mount has to be in this
/// mount namespace.
pub(super) fn are_checked_by_kernel(device: &OwnedFd) -> bool {
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()));
    let mounts = fs::read("/proc/self/mountinfo");
    match (about, mounts) {
        (Ok(about), Ok(mounts)) => has_option(&about, &String::from_utf8_lossy(&mounts)),
        _ => false,
    }
}

fn has_option(about: &str, mounts: &str) -> bool {
    let mut lines = about.lines();
    let Some(number) = lines.find_map(|line| line.strip_prefix("fuse_connection:")) else {
        return false;
    };
    let device = format!("0:{}", number.trim());
    mounts.lines().any(|line| {
        let mut columns = line.split(' ');
        let options = || line.rsplit(' ').next().unwrap_or_default();
        // The device number is the third column; the file system's own options are the last.
        columns.nth(2) == Some(&device)
            && options()
                .split(',')
                .any(|option| option == "default_permissions")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_looked_for_in_the_line_of_the_connection() {
        let mounts = "29 1 0:77 / /a ro - fuse.castore-fs s ro,user_id=0,allow_other\n\
                      30 1 0:78 / /b ro shared:1 - fuse.castore-fs s ro,default_permissions,max_read=1\n";
        assert!(has_option("pos:\t0\nfuse_connection:\t78\n", mounts));
        assert!(!has_option("fuse_connection:\t77\n", mounts));
        assert!(!has_option("fuse_connection:\t7\n", mounts));
        assert!(!has_option("pos:\t0\n", mounts));
    }
}
