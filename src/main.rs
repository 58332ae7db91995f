//! The `castore-fs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    castore_fs::cli::main()
}
