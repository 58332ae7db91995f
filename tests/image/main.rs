//! Images as others read them: the kernel, `fsck.erofs`, `dump.erofs`.

#[path = "../kit/double.rs"]
mod double;
#[path = "../kit/model.rs"]
mod model;
#[path = "../kit/skip.rs"]
mod skip;

mod file;
mod others;
