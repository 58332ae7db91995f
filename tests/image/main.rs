//! Images as others read them: the kernel, `fsck.erofs`, `dump.erofs`.

mod file;
mod mounted;
mod others;
mod view;
