//! `docs/cli.md` is the program's own help.

use std::path::Path;
use std::process::Command;

#[test]
fn the_command_reference_is_current() {
    let run = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(["generate", "reference"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let generated = String::from_utf8(run.stdout).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    if std::env::var_os("CASTORE_FS_REGENERATE").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(
        kept == generated,
        "docs/cli.md is out of date: CASTORE_FS_REGENERATE=1 cargo test --test cli_reference"
    );
}

#[test]
fn every_command_helps_with_an_example() {
    let help = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    let verbs = help(&[]);
    let verbs = verbs.split("Commands:\n").nth(1).unwrap();
    let verbs: Vec<_> = verbs
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|&verb| verb != "help")
        .collect();
    assert!(verbs.contains(&"verify"), "{verbs:?}");
    for verb in verbs {
        let help = help(&[verb]);
        let example = help.split("Example:\n  castore-fs ").nth(1);
        assert!(
            example.is_some_and(|line| line.starts_with(verb)) || help.contains(" | castore-fs "),
            "{help}"
        );
    }
}
