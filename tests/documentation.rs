//! The commands that the documentation shows, run as they are written.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_castore-fs");

/// The blocks of shell commands of a page.
fn blocks(page: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let mut blocks = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```sh" => {
                blocks.push(String::new());
                inside = true;
            }
            "```" => inside = false,
            line if inside => blocks.last_mut().unwrap().extend([line, "\n"]),
            _ => {}
        }
    }
    assert!(!blocks.is_empty(), "{page} shows no command");
    blocks
}

/// Runs a page's commands with bash in an empty directory; a command that fails ends it.
fn run(page: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    let beside = Path::new(PROGRAM).parent().unwrap().display();
    // In a process group of its own, so that the end leaves no process that a failure left behind.
    let shell = Command::new("timeout")
        .args(["--kill-after=10", "300", "bash", "-euxo", "pipefail", "-c"])
        .arg(blocks(page).concat())
        .current_dir(dir.path())
        .env_clear()
        .env("PATH", format!("{beside}:{path}"))
        .env("HOME", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let group = rustix::process::Pid::from_raw(shell.id().cast_signed()).unwrap();
    let run = shell.wait_with_output().unwrap();
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    let output = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(
        run.status.success(),
        "{page}: {}\n{output}{}",
        run.status,
        String::from_utf8_lossy(&run.stderr)
    );
    output
}

#[test]
fn the_tutorial_works_as_it_is_written() {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        kit::skip::skip(&format!("/dev/fuse cannot be opened: {error}"));
        return;
    }
    let output = run("docs/tutorial.md");
    let lines: Vec<_> = output.lines().collect();
    for line in ["tree", "hello", "first version", "second version", "same"] {
        assert!(lines.contains(&line), "{line}: {output}");
    }
    assert!(output.contains("nothing is damaged"), "{output}");
}

/// A scenario runs them, with a real Nix.
#[test]
fn the_tutorial_of_a_store_that_nix_knows_is_what_a_scenario_runs() {
    let shown = blocks("docs/nixos.md");
    for file in ["tutorial.sh", "tutorial-offline.sh"] {
        let run = fs::read_to_string(format!("tests/scenarios/nix-store/files/{file}")).unwrap();
        assert!(shown.contains(&run), "docs/nixos.md does not show {file}");
    }
}
