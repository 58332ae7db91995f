//! A hostile guest: arbitrary rings, chains and requests against the queue handler.

#![no_main]

use std::sync::LazyLock;

use castore_fs::transport::virtiofs::fuzzing::FuzzTarget;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<FuzzTarget> = LazyLock::new(FuzzTarget::default);

fuzz_target!(|input: &[u8]| TARGET.attack(input));
