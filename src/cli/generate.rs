//! `castore-fs generate`: the files of a package beside the program.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, Subcommand};
use clap_complete::Shell;

use super::CliArguments;
use super::failure::{CommandFailure, failure};
use super::man_page::pages;
use super::output::Output;

/// Columns of the help texts in the reference.
const WIDTH: usize = 100;

/// Write shell completions, manual pages or the command reference
#[derive(Debug, Args)]
#[command(hide = true)]
#[command(after_help = "Example:
  castore-fs generate completions ./completions
  castore-fs generate man ./man1
  castore-fs generate reference > docs/cli.md")]
pub(super) struct Generate {
    #[command(subcommand)]
    what: GeneratedFiles,
}

#[derive(Debug, Subcommand)]
enum GeneratedFiles {
    /// Completions for bash, elvish, fish, powershell and zsh
    Completions {
        /// The directory to write to
        dir: PathBuf,
    },
    /// Manual pages
    Man {
        /// The directory to write to
        dir: PathBuf,
    },
    /// Every command's help, as Markdown, on standard output
    Reference,
}

impl Generate {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        match self.what {
            GeneratedFiles::Completions { dir } => completions(&dir),
            GeneratedFiles::Man { dir } => man(&dir),
            GeneratedFiles::Reference => {
                let mut output = Output::open()?;
                output.write_all(reference().as_bytes())?;
                output.flush()?;
                Ok(())
            }
        }
    }
}

fn completions(dir: &Path) -> Result<(), CommandFailure> {
    make(dir)?;
    for &shell in <Shell as clap::ValueEnum>::value_variants() {
        clap_complete::generate_to(shell, &mut CliArguments::command(), "castore-fs", dir)
            .map_err(|error| cannot_write(dir, &error))?;
    }
    Ok(())
}

fn man(dir: &Path) -> Result<(), CommandFailure> {
    make(dir)?;
    let mut command = CliArguments::command().disable_help_subcommand(true);
    command.build();
    let written = clap_mangen::generate_to(command, dir).and_then(|()| {
        let mut pages = pages().into_iter();
        pages.try_for_each(|page| fs::write(dir.join(page.file), page.text))
    });
    written.map_err(|error| cannot_write(dir, &error))
}

fn make(dir: &Path) -> Result<(), CommandFailure> {
    fs::create_dir_all(dir).map_err(|error| cannot_write(dir, &error))
}

fn cannot_write(dir: &Path, error: &std::io::Error) -> CommandFailure {
    failure(format!("cannot write to {}: {error}", dir.display()))
}

/// The text of `docs/cli.md`.
fn reference() -> String {
    let mut command = CliArguments::command().disable_help_subcommand(true);
    command.build();
    let mut text = String::from(
        "# Commands\n\n\
         <!-- Generated: CASTORE_FS_REGENERATE=1 cargo test --test cli_reference -->\n",
    );
    section(&mut command, "castore-fs", &mut text);
    let visible = |command: &&mut Command| !command.is_hide_set();
    for verb in command.get_subcommands_mut().filter(visible) {
        let name = format!("castore-fs {}", verb.get_name());
        section(verb, &name, &mut text);
        for part in verb.get_subcommands_mut() {
            let name = format!("{name} {}", part.get_name());
            section(part, &name, &mut text);
        }
    }
    text
}

fn section(command: &mut Command, name: &str, text: &mut String) {
    let help = command.clone().term_width(WIDTH).render_long_help();
    let lines: Vec<_> = help
        .to_string()
        .lines()
        .map(str::trim_end)
        .map(str::to_owned)
        .collect();
    text.push_str(&format!(
        "\n## {name}\n\n```text\n{}\n```\n",
        lines.join("\n").trim()
    ));
}
