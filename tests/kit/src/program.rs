//! The program under test.

use std::path::PathBuf;

/// The `castore-fs` that Cargo built with the test: beside the folder that test programs are in.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("castore-fs");
    assert!(program.exists(), "{} is not built", program.display());
    program
}
