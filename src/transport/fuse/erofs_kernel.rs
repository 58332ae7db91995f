//! Which kernels have an EROFS that reads an image from a file without fault.
//!
//! Until a fix in Linux 7.0 (ba76ecf45d47, "erofs: set fileio bio failed in short read case"), EROFS took a read of
//! the image that ended early for the end of the image: what was missing became zeros in the page cache, for
//! every later reader too. A read ends early where an error is in its middle, and where SIGKILL ends its
//! program.

use std::fmt;

/// The first releases of older series that have the fix.
const FIXED: [KernelVersion; 3] = [
    KernelVersion(6, 12, 80),
    KernelVersion(6, 18, 21),
    KernelVersion(6, 19, 11),
];

/// A release of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KernelVersion(u32, u32, u32);

impl KernelVersion {
    /// That of the kernel that runs; none if its name begins with no version.
    pub(super) fn current() -> Option<Self> {
        Self::parse(rustix::system::uname().release().to_str().ok()?)
    }

    /// That of a release as `uname` names it, such as `6.12.117+deb13-cloud-amd64`.
    fn parse(release: &str) -> Option<Self> {
        let end = release.find(|c: char| c != '.' && !c.is_ascii_digit());
        let mut numbers = release[..end.unwrap_or(release.len())].split('.');
        let mut next = || numbers.next()?.parse().ok();
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }

    /// Whether EROFS makes an error of a read that ended early.
    pub(super) fn reports_short_reads(self) -> bool {
        let Self(major, minor, patch) = self;
        let is_fixed = |fixed: &Self| (major, minor) == (fixed.0, fixed.1) && patch >= fixed.2;
        major >= 7 || FIXED.iter().any(is_fixed)
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// What is wrong with reading an image through a kernel of this `version`, if anything is.
pub(super) fn fault(version: Option<KernelVersion>) -> Option<String> {
    match version {
        Some(version) if version.reports_short_reads() => None,
        version => {
            let kernel = version.map_or("this kernel".to_owned(), |version| {
                format!("Linux {version}")
            });
            let [a, b, c] = FIXED;
            Some(format!(
                "EROFS of {kernel} can show zeros where a read of the image was cut short (fixed in Linux {a}, {b}, {c} \
                 and 7.0)"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_with_the_fix_are_known_by_their_series() {
        for (release, is_fixed) in [
            ("6.18.44-fc-v1045", true),
            ("6.12.117+deb13-cloud-amd64", true),
            ("6.12.80", true),
            ("6.12.79-amd64", false),
            ("6.14.0-37-generic", false),
            ("6.17.13", false),
            ("6.18.20", false),
            ("6.18.21", true),
            ("6.19", false),
            ("6.19.11", true),
            ("7.0.0", true),
            ("7.1-rc2", true),
            ("10.0", true),
        ] {
            let version = KernelVersion::parse(release).unwrap();
            assert_eq!(version.reports_short_reads(), is_fixed, "{release}");
            assert_eq!(fault(Some(version)).is_none(), is_fixed, "{release}");
        }
        for release in ["", "linux", "6", "6.", ".18.21", "99999999999.1.1"] {
            assert_eq!(KernelVersion::parse(release), None, "{release}");
        }
        assert_eq!(
            fault(KernelVersion::parse("6.14.0-37-generic")).unwrap(),
            "EROFS of Linux 6.14.0 can show zeros where a read of the image was cut short (fixed in Linux \
             6.12.80, 6.18.21, 6.19.11 and 7.0)"
        );
    }

    #[test]
    fn this_kernel_has_a_version() {
        assert!(KernelVersion::current().is_some());
    }
}
