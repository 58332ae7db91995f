//! The store in a directory, from outside: what other processes, crashes, full disks and damaged
//! files do to it.

mod any_state;
mod basics;
mod crash;
mod damage;
mod dir;
mod disk;
mod garbage;
mod leases;
mod missing;
mod processes;
mod root_records;
mod tree;
