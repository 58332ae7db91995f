//! The daemon reads what the NixOS module writes.
//!
//! `tests/nixos/evaluation` shows, where there is Nix and nixpkgs, that the module renders exactly
//! the files in `expected`; here the program itself judges them, everywhere. So it does the
//! configurations of `tests/scenarios`, which the machines of the system tests run with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn check_config(file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(["check-config", "--no-files"])
        .arg(file)
        .output()
        .expect("the program was just built")
}

/// The TOML files in `dir`.
fn configurations(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{dir:?}: {error}"));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    files
}

fn all_are_accepted(files: &[PathBuf]) {
    let refused: Vec<_> = files
        .iter()
        .map(|file| check_config(file))
        .filter(|output| !output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
        .collect();
    assert!(refused.is_empty(), "{}", refused.concat());
}

#[test]
fn the_daemon_reads_what_the_module_writes() {
    let files = configurations(&tests().join("nixos/evaluation/expected"));
    assert!(files.len() >= 4, "{files:?}");
    all_are_accepted(&files);
}

#[test]
fn the_daemon_reads_the_configurations_of_the_scenarios() {
    let dirs = fs::read_dir(tests().join("scenarios")).expect("the scenarios");
    let files: Vec<_> = dirs
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.is_dir())
        .flat_map(|dir| configurations(&dir))
        .collect();
    assert!(files.len() >= 6, "{files:?}");
    all_are_accepted(&files);
}

#[test]
fn a_wrong_key_is_refused_with_its_place_and_the_right_spelling() {
    let output = check_config(&tests().join("scenarios/reload/files/wrong.toml"));
    assert_eq!(output.status.code(), Some(1));
    let reported = String::from_utf8_lossy(&output.stderr);
    assert!(
        reported.contains("wrong.toml:3") && reported.contains("\"list-root\""),
        "{reported}"
    );
}
