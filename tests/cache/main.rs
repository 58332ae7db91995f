//! A cache in front of a far store: what stays, what goes, and what its readers notice of trouble at
//! either end.

#[path = "../kit/double.rs"]
mod double;
mod keeping;
#[path = "../kit/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "../kit/mounted.rs"]
#[allow(dead_code)]
mod mounted;
mod near;
#[path = "../kit/noise.rs"]
mod noise;
#[path = "../kit/patience.rs"]
mod patience;
mod room;
mod roots;
#[path = "../kit/skip.rs"]
mod skip;
#[path = "../kit/small_disk.rs"]
mod small_disk;
mod tree;
mod trouble;
