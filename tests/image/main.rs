//! Images as others read them: the kernel, `fsck.erofs`, `dump.erofs`.

#[path = "../kit/double.rs"]
mod double;
#[path = "../kit/model.rs"]
mod model;
#[path = "../kit/mounted.rs"]
#[allow(dead_code)]
mod mounts;
#[path = "../kit/skip.rs"]
mod skip;

mod file;
mod mounted;
mod others;
mod view;
