//! Options of mount(8) that do not depend on the file system ("filesystem-independent mount options").
//!
//! Most are flags of mount(2), of the mount or of its file system. A mount of castore-fs can only
//! be read and has no devices and no setuid bits, so `ro`, `nosuid`, `nodev` and `noatime` are the
//! default. `rw` has no effect: mount(8) adds it to options that do not contain `ro`.

use std::path::Path;

use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use thiserror::Error;

use super::mount_table::MountEntry;

/// The flags of a mount without any option.
const BASE: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOATIME);

const NONE: MountFlags = MountFlags::empty();
/// At most one of these is set; without any the kernel takes `relatime`.
const ATIME: MountFlags = MountFlags::NOATIME
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME);

/// Options that are flags: the name, the flags that it sets, and those that it clears first.
const FLAGS: &[(&str, MountFlags, MountFlags)] = &[
    ("ro", NONE, NONE),
    ("rw", NONE, NONE),
    ("defaults", NONE, NONE),
    ("exec", NONE, MountFlags::NOEXEC),
    ("noexec", MountFlags::NOEXEC, NONE),
    ("suid", NONE, MountFlags::NOSUID),
    ("nosuid", MountFlags::NOSUID, NONE),
    ("dev", NONE, MountFlags::NODEV),
    ("nodev", MountFlags::NODEV, NONE),
    ("symfollow", NONE, MountFlags::NOSYMFOLLOW),
    ("nosymfollow", MountFlags::NOSYMFOLLOW, NONE),
    ("atime", NONE, MountFlags::NOATIME),
    ("noatime", MountFlags::NOATIME, ATIME),
    ("relatime", MountFlags::RELATIME, ATIME),
    ("norelatime", NONE, MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME, ATIME),
    ("nostrictatime", NONE, MountFlags::STRICTATIME),
    ("diratime", NONE, MountFlags::NODIRATIME),
    ("nodiratime", MountFlags::NODIRATIME, NONE),
    ("async", NONE, MountFlags::SYNCHRONOUS),
    ("sync", MountFlags::SYNCHRONOUS, NONE),
    ("dirsync", MountFlags::DIRSYNC, NONE),
    ("lazytime", MountFlags::LAZYTIME, NONE),
    ("nolazytime", NONE, MountFlags::LAZYTIME),
    ("silent", MountFlags::SILENT, NONE),
    ("loud", NONE, MountFlags::SILENT),
    // Options that let users mount. mount(8) makes these imply nosuid and nodev, and some noexec, so that a
    // mount of one user cannot give programs with privileges to others.
    ("user", USER, NONE),
    ("users", USER, NONE),
    ("owner", OWNER, NONE),
    ("group", OWNER, NONE),
    // No effect on a file system that is never written.
    ("iversion", NONE, NONE),
    ("noiversion", NONE, NONE),
    ("mand", NONE, NONE),
    ("nomand", NONE, NONE),
    // Read by mount(8), systemd and fsck(8), and not by the kernel.
    ("auto", NONE, NONE),
    ("noauto", NONE, NONE),
    ("nofail", NONE, NONE),
    ("nouser", NONE, NONE),
    ("nousers", NONE, NONE),
    ("noowner", NONE, NONE),
    ("nogroup", NONE, NONE),
    ("_netdev", NONE, NONE),
    ("comment", NONE, NONE),
];

const OWNER: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const USER: MountFlags = OWNER.union(MountFlags::NOEXEC);

/// Options for the propagation of mounts in this one (mount_namespaces(7)).
const PROPAGATION: &[(&str, MountPropagationFlags)] = &[
    ("shared", MountPropagationFlags::SHARED),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("private", MountPropagationFlags::PRIVATE),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
];

/// Options whose value restricts where they hold (`ro=vfs`, `noexec=recursive`). The value has no effect here: a
/// new mount has no mounts below it, and the file system is read-only in any case.
const LAYERED: &[&str] = &[
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "symfollow",
    "nosymfollow",
    "atime",
    "noatime",
    "relatime",
    "strictatime",
    "diratime",
    "nodiratime",
];

/// Options for SELinux, with a value (mount(8)). They are left out where the kernel has no SELinux.
const SELINUX: &[&str] = &["context", "fscontext", "defcontext", "rootcontext"];

/// The names of flags in mountinfo and for fusermount3.
const NAMES: &[(&str, MountFlags)] = &[
    ("noexec", MountFlags::NOEXEC),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("nosymfollow", MountFlags::NOSYMFOLLOW),
    ("noatime", MountFlags::NOATIME),
    ("relatime", MountFlags::RELATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("lazytime", MountFlags::LAZYTIME),
];

/// A file that exists if the kernel has SELinux.
const SELINUX_FILE: &str = "/sys/fs/selinux/enforce";

/// Flags of a mount as fsmount(2) has them.
const ATTRIBUTES: &[(MountFlags, MountAttrFlags)] = &[
    (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
    (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
    (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
    (
        MountFlags::NOSYMFOLLOW,
        MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW,
    ),
    (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    (
        MountFlags::STRICTATIME,
        MountAttrFlags::MOUNT_ATTR_STRICTATIME,
    ),
    (
        MountFlags::NODIRATIME,
        MountAttrFlags::MOUNT_ATTR_NODIRATIME,
    ),
];

/// An option that depends on the file system, or does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no option of mount(8) that every file system has; those of castore-fs are set otherwise"
)]
pub struct UnknownOption(String);

/// The options of a mount that do not depend on the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenericOptions {
    flags: MountFlags,
    propagation: Vec<MountPropagationFlags>,
    /// `context="…"` and the like.
    selinux: Vec<String>,
}

impl Default for GenericOptions {
    fn default() -> Self {
        Self {
            flags: BASE,
            propagation: Vec::new(),
            selinux: Vec::new(),
        }
    }
}

impl GenericOptions {
    /// Parses `options`; a later one overrides an earlier one.
    pub fn of(options: &[String]) -> Result<Self, UnknownOption> {
        let mut all = Self::default();
        for option in options {
            if !all.add(option) {
                return Err(UnknownOption(option.clone()));
            }
        }
        Ok(all)
    }

    /// Adds `option`, which overrides those before it. Returns whether it is known.
    pub fn add(&mut self, option: &str) -> bool {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        if ["x-", "X-"].iter().any(|prefix| name.starts_with(prefix)) {
            return true;
        }
        if let Some("vfs" | "fs" | "recursive") = value
            && LAYERED.contains(&name)
        {
            return self.add(name);
        }
        if let Some(value) = value {
            let is_context = SELINUX.contains(&name);
            if is_context && !value.is_empty() {
                self.selinux.push(option.to_owned());
            }
            // The right to mount and unmount, and comments in fstab: no part of the mount itself.
            return is_context || matches!(name, "user" | "comment" | "uhelper" | "helper");
        }
        if let Some((_, set, clear)) = FLAGS.iter().find(|(known, ..)| *known == name) {
            self.flags = self.flags.difference(*clear).union(*set);
            return true;
        }
        let (name, recursive) = match name.strip_prefix('r') {
            Some(rest) if PROPAGATION.iter().any(|(known, _)| *known == rest) => (rest, true),
            _ => (name, false),
        };
        let found = PROPAGATION.iter().find(|(known, _)| *known == name);
        self.propagation
            .extend(found.map(|(_, flags)| match recursive {
                true => flags.union(MountPropagationFlags::REC),
                false => *flags,
            }));
        found.is_some()
    }

    /// The flags for mount(2).
    pub(super) fn flags(&self) -> MountFlags {
        self.flags
    }

    /// The options for SELinux, each with a comma before it.
    pub(super) fn data(&self) -> String {
        match Path::new(SELINUX_FILE).exists() {
            true => self
                .selinux
                .iter()
                .map(|option| format!(",{option}"))
                .collect(),
            false => String::new(),
        }
    }

    /// The flags of the mount, for fsmount(2).
    pub(super) fn attributes(&self) -> MountAttrFlags {
        let each = ATTRIBUTES.iter();
        let has = each.filter(|(flag, _)| self.flags.contains(*flag));
        has.map(|(_, attribute)| *attribute).collect()
    }

    /// The flags that the mount of `entry` has now, for fsmount(2).
    pub(super) fn attributes_of(entry: &MountEntry) -> MountAttrFlags {
        let mut flags = entry
            .options
            .split(',')
            .filter_map(|option| NAMES.iter().find(|(name, _)| *name == option))
            .fold(NONE, |flags, (_, flag)| flags.union(*flag));
        flags.set(
            MountFlags::RDONLY,
            entry.options.split(',').any(|option| option == "ro"),
        );
        // The table does not show it.
        flags.set(MountFlags::STRICTATIME, !flags.intersects(ATIME));
        let options = Self {
            flags,
            ..Self::default()
        };
        options.attributes()
    }

    /// The flags of the file system, for fsconfig(2).
    pub(super) fn file_system_flags(&self) -> Vec<String> {
        let names = ["sync", "dirsync", "lazytime"].into_iter();
        let flags = names.filter(|name| {
            let mut named = NAMES.iter().filter(|(known, _)| known == name);
            named.any(|(_, flag)| self.flags.contains(*flag))
        });
        std::iter::once("ro")
            .chain(flags)
            .map(str::to_owned)
            .collect()
    }

    /// The options for SELinux, for fsconfig(2).
    pub(super) fn file_system_values(&self) -> Vec<(String, String)> {
        if !Path::new(SELINUX_FILE).exists() {
            return Vec::new();
        }
        let pairs = self
            .selinux
            .iter()
            .filter_map(|option| option.split_once('='));
        pairs
            .map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()))
            .collect()
    }

    /// The flags as options of fusermount3, separated by commas.
    pub(super) fn for_helper(&self) -> String {
        let mut names = vec!["ro"];
        // fusermount3 lets only the superuser omit nosuid and nodev.
        let flags = self.flags.union(OWNER);
        names.extend(
            NAMES
                .iter()
                .filter(|(_, flag)| flags.contains(*flag))
                .map(|(name, _)| *name),
        );
        if flags.contains(MountFlags::STRICTATIME) {
            names.push("strictatime");
        }
        names.join(",")
    }

    /// The propagation, to be set once it is mounted.
    pub(super) fn propagation(&self) -> &[MountPropagationFlags] {
        &self.propagation
    }

    /// Whether the mount of `entry` has these flags.
    pub(super) fn are_those_of(&self, entry: &MountEntry) -> bool {
        let all = entry.options.split(',').chain(entry.fs_options.split(','));
        let has: MountFlags = all
            .filter_map(|option| NAMES.iter().find(|(name, _)| *name == option))
            .fold(NONE, |flags, (_, flag)| flags.union(*flag));
        // Flags that mountinfo does not show, or that are fixed when the file system is made.
        let unseen = MountFlags::RDONLY
            .union(MountFlags::SILENT)
            .union(MountFlags::STRICTATIME)
            .union(MountFlags::DIRSYNC);
        let mut wanted = self.flags.difference(unseen);
        if !self.flags.intersects(ATIME) {
            wanted = wanted.union(MountFlags::RELATIME);
        }
        wanted == has.difference(unseen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &str) -> GenericOptions {
        let list: Vec<String> = list.split(',').map(str::to_owned).collect();
        GenericOptions::of(&list).unwrap()
    }

    #[test]
    fn the_flags_that_a_mount_has_now_are_read_from_the_table() {
        let attributes = |options: &str| {
            let entry = MountEntry {
                options: options.to_owned(),
                ..MountEntry::default()
            };
            GenericOptions::attributes_of(&entry)
        };
        let all = "ro,nosuid,nodev,noexec,noatime,nosymfollow";
        assert_eq!(
            attributes(all),
            of("noexec,nosymfollow").attributes(),
            "ro, nosuid, nodev and noatime are the default"
        );
        let strict = attributes("ro,nosuid,nodev");
        assert!(strict.contains(MountAttrFlags::MOUNT_ATTR_STRICTATIME));
        let relative = attributes("ro,relatime");
        assert_eq!(relative, MountAttrFlags::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn a_later_option_overrides_an_earlier_one() {
        assert_eq!(of("noexec").flags(), BASE.union(MountFlags::NOEXEC));
        assert_eq!(of("noexec,exec").flags(), BASE);
        assert_eq!(of("user,exec").flags(), BASE);
        assert_eq!(of("users").flags(), BASE.union(MountFlags::NOEXEC));
        assert_eq!(of("rw,suid,dev").flags(), BASE.difference(OWNER));
        let strict = of("strictatime").flags();
        assert_eq!(strict & ATIME, MountFlags::STRICTATIME);
        assert_eq!(
            of("strictatime,relatime").flags() & ATIME,
            MountFlags::RELATIME
        );
        assert_eq!(of("atime").flags() & ATIME, NONE);
    }

    #[test]
    fn every_option_of_mount_that_does_not_depend_on_the_file_system_is_known() {
        // mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS", and what fstab(5) and systemd.mount(5) add.
        of(
            "async,atime,noatime,auto,noauto,context=system_u:object_r:tmp_t:s0,fscontext=c,\
            defcontext=c,rootcontext=c,defaults,dev,nodev,diratime,nodiratime,dirsync,exec,noexec,\
            group,iversion,noiversion,mand,nomand,_netdev,nofail,relatime,norelatime,strictatime,\
            nostrictatime,lazytime,nolazytime,suid,nosuid,silent,loud,owner,ro,rw,sync,user,user=me,\
            nouser,users,X-mount.mkdir=755,X-mount.owner=0,x-systemd.automount,x-initrd.mount,\
            nosymfollow,symfollow,ro=vfs,noexec=recursive,comment=bind,shared,rprivate,slave,runbindable",
        );
        assert_eq!(of("noexec=recursive").flags(), of("noexec").flags());
        for unknown in ["colour=red", "noexec=1", "sync=vfs", "rnoexec", "bind", ""] {
            assert!(!GenericOptions::default().add(unknown), "{unknown}");
        }
    }

    #[test]
    fn flags_of_a_mount_are_compared_with_what_is_wanted() {
        let entry = |options: &str, fs_options: &str| MountEntry {
            id: 1,
            parent: 1,
            device: "0:1".parse().unwrap(),
            root: "/".into(),
            path: "/m".into(),
            options: options.to_owned(),
            fs_type: String::new(),
            source: String::new(),
            fs_options: fs_options.to_owned(),
        };
        let plain = entry("ro,nosuid,nodev,noatime", "ro,user_id=0");
        assert!(of("rw").are_those_of(&plain));
        assert!(of("silent,loud").are_those_of(&plain));
        assert!(!of("noexec").are_those_of(&plain));
        assert!(!of("sync").are_those_of(&plain));
        assert!(of("sync,atime").are_those_of(&entry("ro,nosuid,nodev,relatime", "ro,sync")));
    }

    #[test]
    fn fusermount_gets_options_by_name() {
        assert_eq!(
            of("dev,noexec,strictatime,sync").for_helper(),
            "ro,noexec,nosuid,nodev,sync,strictatime"
        );
    }
}
