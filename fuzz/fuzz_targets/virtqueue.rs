//! A hostile guest: arbitrary rings, chains and requests against the queue handler.

#![no_main]

use std::sync::LazyLock;

use castore_fs::transport::virtiofs::fuzzing::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(Target::default);

fuzz_target!(|input: &[u8]| TARGET.attack(input));
