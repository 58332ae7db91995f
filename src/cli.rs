//! The command line: one file for each verb, and here their common parts.
//!
//! A verb is a struct of arguments with a `run`. It does no work of its own: it opens the store,
//! calls the library, and prints. Results go to standard output, through `output::Output`;
//! everything else (errors, progress, logs) goes to standard error.
//!
//! Exit status: 0 success; 1 failure, or `verify` found damage; 2 wrong usage; 130 interrupted; 141
//! the reader of the output closed it. An error is one line, `castore-fs: …`.

mod background;
mod cat;
mod check_config;
mod closed;
mod confine;
mod control;
mod copy;
mod daemon;
mod drop_cache;
mod du;
mod export;
mod failure;
mod gc;
mod generate;
mod image;
mod import;
mod import_paths;
mod interrupt;
mod json;
mod ls;
mod man_page;
mod mount;
mod mount_helper;
mod mv;
mod names;
mod output;
mod pin;
mod prefetch;
mod profile;
mod progress;
mod rm;
mod running_import;
mod serve;
mod stat;
mod status;
mod store;
mod supervisor;
mod tag;
mod units;
mod utc;
mod verify;
mod virtiofs;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A content-addressed file system.
///
/// Directories are stored once, however often their contents repeat; every read is verified.
#[derive(Debug, Parser)]
#[command(name = "castore-fs", version, max_term_width = 100)]
#[command(after_long_help = "\
A TARGET is the name of a root (`castore-fs ls` lists them) or a digest (blake3-<base64>, b3:<hex>, \
or 64 hex digits), then a path below it: tree, tree/bin/sh, b3:60fb…/bin. /nix/store/NAME is \
NAME. A root whose name reads as a digest is reached with a slash in front. Symbolic links are \
not followed.

Logs go to standard error; RUST_LOG sets what is logged (RUST_LOG=castore_fs=debug).")]
struct CliArguments {
    #[command(subcommand)]
    verb: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(import::Import),
    Ls(ls::Ls),
    Cat(cat::Cat),
    Stat(stat::Stat),
    Export(export::ExportCommand),
    Mount(Box<mount::MountCommand>),
    Virtiofs(virtiofs::VirtiofsCommand),
    Verify(verify::VerifyCommand),
    Copy(copy::CopyCommand),
    Rm(rm::Rm),
    Tag(tag::TagCommand),
    Mv(mv::Mv),
    Du(du::Du),
    Gc(gc::Gc),
    Serve(serve::Serve),
    Daemon(daemon::DaemonCommand),
    CheckConfig(check_config::CheckConfig),
    Status(status::StatusCommand),
    Image(image::ImageCommand),
    Prefetch(prefetch::PrefetchCommand),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    DropCache(drop_cache::DropCache),
    Profile(profile::ProfileVerb),
    Generate(generate::Generate),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if words
        .next()
        .is_some_and(|program| mount_helper::is_called(&program))
    {
        return mount_helper::run(words);
    }
    let arguments = match CliArguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::usage(&error),
    };
    match arguments.verb {
        // The service's log is configured in its file.
        Command::Daemon(_) => {}
        Command::Mount(_) | Command::Virtiofs(_) | Command::Serve(_) => log_messages("warn", true),
        // A failing endpoint makes the command fail, whose one error has the reason.
        _ => log_messages("warn,castore_fs::store::circuit_breaker=off", false),
    }
    allow_many_files();
    let result = match arguments.verb {
        Command::Import(verb) => verb.run(),
        Command::Ls(verb) => verb.run(),
        Command::Cat(verb) => verb.run(),
        Command::Stat(verb) => verb.run(),
        Command::Export(verb) => verb.run(),
        Command::Mount(verb) => verb.run(),
        Command::Virtiofs(verb) => verb.run(),
        Command::Verify(verb) => verb.run(),
        Command::Copy(verb) => verb.run(),
        Command::Rm(verb) => verb.run(),
        Command::Tag(verb) => verb.run(),
        Command::Mv(verb) => verb.run(),
        Command::Du(verb) => verb.run(),
        Command::Gc(verb) => verb.run(),
        Command::Serve(verb) => verb.run(),
        Command::Daemon(verb) => verb.run(),
        Command::CheckConfig(verb) => verb.run(),
        Command::Status(verb) => verb.run(),
        Command::Image(verb) => verb.run(),
        Command::Prefetch(verb) => verb.run(),
        Command::Pin(verb) => verb.run(),
        Command::Unpin(verb) => verb.run(),
        Command::DropCache(verb) => verb.run(),
        Command::Profile(verb) => verb.run(),
        Command::Generate(verb) => verb.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Raises the limit of open files as far as possible: a walk holds one for each directory that it
/// is inside of, and 1024, the default for the sake of old programs, is soon deep enough.
fn allow_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Logs at the level `usual`, warnings and errors, unless `RUST_LOG` has another; `with_time` puts
/// the time (UTC, RFC 3339) before each line. A mount that mount(8) has started logs to the journal,
/// if there is one: its standard error ends with mount(8).
fn log_messages(usual: &str, with_time: bool) {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = match crate::service::check_level(&asked) {
        Ok(()) if !asked.is_empty() => EnvFilter::new(asked),
        Ok(()) => EnvFilter::new(usual),
        Err(wrong) => {
            failure::print_error(&format!("RUST_LOG: {wrong}"));
            EnvFilter::new(usual)
        }
    };
    if background::is_background()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_field_prefix(None);
        let journal = journal.with_syslog_identifier("castore-fs".to_owned());
        let log = tracing_subscriber::registry().with(filter).with(journal);
        return log.init();
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(crate::service::text_fields())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match with_time {
        true => lines.init(),
        false => lines.without_time().init(),
    }
}

/// Permissions in octal, as arguments have them.
fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("a mode is octal, 000 to 777".to_owned()),
    }
}
