//! The store in a folder, from outside: what other processes, crashes, full disks and damaged
//! files do to it.

mod basics;
mod crash;
mod damage;
mod disk;
mod folder;
mod garbage;
mod leases;
mod missing;
#[path = "../kit/noise.rs"]
mod noise;
mod processes;
mod root_records;
#[path = "../kit/skip.rs"]
mod skip;
#[path = "../kit/small_disk.rs"]
mod small_disk;
mod tree;
