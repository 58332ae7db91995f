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

/// Runs commands of a page with bash in an empty directory; a command that fails ends it.
fn run(page: &str, commands: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    let beside = Path::new(PROGRAM).parent().unwrap().display();
    // In a process group of its own, so that the end leaves no process that a failure left behind.
    let shell = Command::new("timeout")
        .args(["--kill-after=10", "300", "bash", "-euxo", "pipefail", "-c"])
        .arg(commands)
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
    let commands = blocks("docs/tutorial.md").concat();
    // The current job may be a mount that is about to end: what is ended is named.
    assert!(!commands.contains("kill %"), "{commands}");
    let output = run("docs/tutorial.md", &commands);
    let lines: Vec<_> = output.lines().collect();
    for line in ["tree", "hello", "first version", "second version", "same"] {
        assert!(lines.contains(&line), "{line}: {output}");
    }
    assert!(output.contains("nothing is damaged"), "{output}");
}

/// Commands that serve until they are ended are ended here, once they serve.
fn ended(commands: &str) -> String {
    let end = |line: &str, is_up: &str, end: &str| {
        let command = line.split(" #").next().unwrap();
        format!("{command} &\nuntil {is_up}; do sleep 0.1; done\n{end}\nwait\n")
    };
    let lines = commands.lines().map(|line| {
        let words = line.split(" #").next().unwrap().split_whitespace();
        let last = words.last().unwrap_or_default();
        match line.split_whitespace().nth(1) {
            Some("mount") => end(line, &format!("mountpoint -q {last}"), "umount /mnt"),
            Some("virtiofs" | "serve") => {
                let socket = last.strip_prefix("unix:").unwrap_or(last);
                end(line, &format!("[ -S {socket} ]"), "kill %%")
            }
            Some("daemon") => end(line, "mountpoint -q /mnt", "kill %%"),
            _ => format!("{line}\n"),
        }
    });
    lines.collect()
}

/// In a mount namespace of its own, where the store of the superuser and /run are empty.
const SET_UP: &str = r#"
if [ "${1:-}" != inside ]; then
    exec unshare --mount bash -euxo pipefail -c "$BASH_EXECUTION_STRING" bash inside
fi
for dir in /var/lib /run; do mount -t tmpfs none "$dir"; done
mkdir -p tree/bin rootfs
echo text >tree/bin/program
"#;

#[test]
fn the_first_steps_of_the_readme_and_of_virtiofs_work_as_they_are_written() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        kit::skip::skip("it needs the superuser and /dev/fuse");
        return;
    }
    for (page, first) in [
        ("README.md", "castore-fs import ./tree "),
        ("docs/virtiofs.md", "castore-fs import --name rootfs "),
    ] {
        let blocks = blocks(page);
        let block = blocks
            .iter()
            .find(|block| block.starts_with(first))
            .unwrap();
        let output = run(page, &format!("{SET_UP}{}", ended(block)));
        assert!(
            output.starts_with("tree\n") || output.starts_with("rootfs\n"),
            "{output}"
        );
    }
}

/// With something for what the reader has to put in.
#[test]
fn the_further_commands_of_the_readme_work() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        kit::skip::skip("it needs the superuser and /dev/fuse");
        return;
    }
    let set_up = r#"
mkdir source
echo text >source/file
castore-fs import tree
castore-fs import --store local:/run/backup tree
echo '[stores.disk]
url = "local:/var/lib/castore-fs"
[mounts.mnt]
path = "/mnt"
store = "disk"' >config.toml
"#;
    let blocks = blocks("README.md");
    let block = blocks
        .iter()
        .find(|block| block.starts_with("castore-fs import --nix "));
    let mut commands = block.unwrap().clone();
    for (shown, put_in) in [
        (
            "--from URL --to URL",
            "--from local:/var/lib/castore-fs --to local:/run/copy",
        ),
        ("--from local:/b ", "--from local:/run/backup "),
        (
            "--store URL --listen ADDR",
            "--store local:/run/copy --listen unix:/run/listen",
        ),
        (
            "--binary-cache ADDR",
            "--binary-cache unix:/run/binary-cache",
        ),
        ("--socket PATH", "--socket /run/virtiofs"),
        ("--config FILE", "--config config.toml"),
    ] {
        assert!(commands.contains(shown), "{shown}");
        commands = commands.replace(shown, put_in);
    }
    assert_eq!(commands.lines().count(), 7, "{commands}");
    let output = run(
        "README.md",
        &format!("{SET_UP}{set_up}{}", ended(&commands)),
    );
    assert!(output.contains("-source\n"), "{output}");
}

/// The `castore-fs` commands of a page, in its blocks and in its sentences.
fn commands(page: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    // Every second part is code: a block, or between the backquotes of a sentence.
    let blocks = text.split("```").enumerate();
    let code = blocks.flat_map(|(at, part)| match at % 2 {
        0 => part
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|code| code.replace('\n', " "))
            .collect(),
        _ => part
            .replace("\\\n", " ")
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    });
    code.filter_map(|code| {
        let command = code.trim().strip_prefix("castore-fs ")?;
        let end = command
            .find([';', '|', '#', '>', '&', '…'])
            .unwrap_or(command.len());
        Some(command[..end].trim().to_owned())
    })
    .filter(|command| command.starts_with(|first: char| first.is_ascii_lowercase()))
    .collect()
}

#[test]
fn every_command_that_a_page_shows_is_one_of_this_program() {
    let mut pages: Vec<_> = fs::read_dir("docs")
        .unwrap()
        .map(|page| page.unwrap().path())
        .collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(Into::into));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in pages {
        let page = page.to_str().unwrap();
        for mut command in commands(page) {
            // With a value for what the reader or the shell has to put in. An option that is unknown is an
            // error before the help is printed.
            while let Some(at) = command.find("$(") {
                let end = command[at..]
                    .find(')')
                    .map_or(command.len(), |end| at + end + 1);
                command.replace_range(at..end, "value");
            }
            let words = command.split_whitespace().map(|word| match word {
                "SIZE" => "1GiB",
                "TIME" => "1h",
                "ADDRESS" | "ADDR" => "127.0.0.1:1",
                "URL" => "memory:",
                word => word.trim_matches(['"', '\\']),
            });
            let run = Command::new(PROGRAM)
                .args(words)
                .arg("--help")
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&run.stderr);
            // A sentence names an option without its value.
            let last = command.split_whitespace().last().unwrap();
            let named = format!("a value is required for '{last} ");
            if !run.status.success() && !error.contains(&named) {
                wrong.push(format!("{page}: castore-fs {command}: {error}"));
            }
            seen += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
    assert!(seen > 100, "{seen}");
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
