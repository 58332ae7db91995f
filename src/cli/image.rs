//! `castore-fs image`.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::service;
use clap::Args;

use super::control::ControlArguments;
use super::failure::{CommandFailure, failure};
use super::output::Output;

/// Print the path and size of a disk image that the running service shows
///
/// NAME is the name of a root (also /nix/store/NAME), of an image in the configuration ([images.NAME]), or
/// the 64 hex digits of a root's digest. The first mount with images (images = true) that has it is used. The
/// size is in bytes, and a multiple of 2 MiB.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs image tree
  castore-fs image --json my-closure")]
pub(super) struct ImageCommand {
    #[command(flatten)]
    control: ControlArguments,
    /// The mount, by its name in the service's configuration
    #[arg(long, value_name = "NAME")]
    mount: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// The image
    name: String,
}

/// The output.
#[derive(serde::Serialize)]
struct PrintedImage {
    path: PathBuf,
    size: u64,
}

impl ImageCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let status = service::ask_status(&self.control.socket()?)?;
        let image = self.name.strip_prefix("/nix/store/").unwrap_or(&self.name);
        let mut searched = Vec::new();
        for (name, mount) in &status.mounts {
            if !mount.images || self.mount.as_ref().is_some_and(|wanted| wanted != name) {
                continue;
            }
            let path = mount.path.join(format!(".images/{image}.erofs"));
            match fs::metadata(&path) {
                Ok(stat) => {
                    let size = stat.len();
                    return self.print(&PrintedImage { path, size });
                }
                Err(error) => searched.push(format!("{}: {error}", path.display())),
            }
        }
        let why = match (searched.is_empty(), &self.mount) {
            (true, None) => {
                "no mount shows images: set `images = true` in [mounts.NAME]".to_owned()
            }
            (true, Some(mount)) => {
                format!("there is no mount {mount:?} with images: set `images = true` in it")
            }
            (false, _) => searched.join("; "),
        };
        Err(failure(format!("there is no image {:?}: {why}", self.name)))
    }

    fn print(&self, image: &PrintedImage) -> Result<(), CommandFailure> {
        let mut output = Output::open()?;
        match self.json {
            true => output.json(image)?,
            false => {
                let path = output.name(image.path.as_os_str().as_bytes()).into_owned();
                output.write_all(&path)?;
                writeln!(output, " {}", image.size)?;
            }
        }
        output.flush()?;
        Ok(())
    }
}
