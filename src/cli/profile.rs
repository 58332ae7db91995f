//! `castore-fs profile`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use castore_fs::profile::Profiles;
use castore_fs::service::{
    Done, ProfileDone, ProfileRequest, ProfileStatus, Request, obey_profile_request, tell,
};
use clap::{Args, Subcommand};
use data_encoding::BASE64;
use indicatif::HumanCount;

use super::control::{ControlArguments, not_that};
use super::failure::{Failure, failure, say};
use super::output::Output;

/// Bytes of a file that can be a profile, at most: a longer one is not read.
const MOST_BYTES: u64 = 9 << 20;

/// List, export, import and remove the access profiles of mounts and guests
///
/// A profile lists the files that are read first below a root. The next cold mount of that root, or
/// of another version of it, in a guest or not, prefetches them in that order if it has
/// `warmup = "learn"`; docs/warmup.md has the details. Without --folder the running service is used.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs profile list
  castore-fs profile export tree > tree.profile
  castore-fs profile import --folder image/var/lib/castore-fs/profiles tree.profile
  castore-fs profile rm tree")]
pub(super) struct ProfileVerb {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the profiles: for each the number of files, and of their extents of up to 1 MiB
    List {
        #[command(flatten)]
        place: Place,
        /// One JSON object a profile
        #[arg(long)]
        json: bool,
    },
    /// Write a profile, with the recordings up to now, to standard output
    Export {
        #[command(flatten)]
        place: Place,
        /// The root's name, or the `root` of the mount
        name: String,
    },
    /// Store a profile, replacing that of its root
    ///
    /// It is used from the next mount on. A mount that is recording the same root puts its
    /// recording in front.
    Import {
        #[command(flatten)]
        place: Place,
        /// Store it for this root, instead of the one in the profile
        #[arg(long = "as", value_name = "NAME")]
        name: Option<String>,
        /// A file from `castore-fs profile export`; - is standard input
        file: PathBuf,
    },
    /// Remove profiles
    Rm {
        #[command(flatten)]
        place: Place,
        /// The roots' names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// The place of profiles.
#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    control: ControlArguments,
    /// The directory with the profiles, if not the running service's: `profiles` in its state
    /// directory
    #[arg(long, value_name = "PATH", conflicts_with = "socket")]
    folder: Option<PathBuf>,
}

impl Place {
    fn ask(&self, request: ProfileRequest) -> Result<ProfileDone, Failure> {
        if let Some(folder) = &self.folder {
            let profiles = Profiles::new(folder.clone());
            return obey_profile_request(&profiles, request).map_err(failure);
        }
        match tell(&self.control.socket, &Request::Profile(request), |_| {})? {
            Done::Profile(done) => Ok(done),
            other => Err(not_that(&other)),
        }
    }
}

impl ProfileVerb {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::List { place, json } => list(&place, json),
            Verb::Export { place, name } => export(&place, name),
            Verb::Import { place, name, file } => import(&place, name, &file),
            Verb::Rm { place, names } => names.into_iter().try_for_each(|name| {
                match place.ask(ProfileRequest::Remove { name })? {
                    ProfileDone::Removed(_) => Ok(()),
                    other => Err(unexpected(other)),
                }
            }),
        }
    }
}

fn list(place: &Place, json: bool) -> Result<(), Failure> {
    let done = place.ask(ProfileRequest::List)?;
    let ProfileDone::Listed { profiles, bad } = done else {
        return Err(unexpected(done));
    };
    let mut output = Output::open()?;
    for profile in &profiles {
        match json {
            true => output.json(profile)?,
            false => output.line(&line(profile))?,
        }
    }
    output.flush()?;
    bad.iter().for_each(|what| say(what));
    match bad.is_empty() {
        true => Ok(()),
        false => Err(Failure::Reported),
    }
}

fn line(profile: &ProfileStatus) -> String {
    let (files, stretches) = (HumanCount(profile.files), HumanCount(profile.stretches));
    format!("{}: {files} files, {stretches} extents", profile.name)
}

fn export(place: &Place, name: String) -> Result<(), Failure> {
    let done = place.ask(ProfileRequest::Export { name })?;
    let ProfileDone::Exported(profile) = done else {
        return Err(unexpected(done));
    };
    let bytes = BASE64.decode(profile.as_bytes());
    let bytes =
        bytes.map_err(|error| failure(format!("the service's answer is wrong: {error}")))?;
    let mut output = Output::open()?;
    output.write_all(&bytes)?;
    output.flush()?;
    Ok(())
}

fn import(place: &Place, name: Option<String>, file: &PathBuf) -> Result<(), Failure> {
    let shown = file.display();
    let mut bytes = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => io::stdin().lock().take(MOST_BYTES).read_to_end(&mut bytes),
        false => File::open(file).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes)),
    };
    read.map_err(|error| failure(format!("cannot read {shown}: {error}")))?;
    // The error names the file; the service checks the profile again.
    castore_fs::profile::Profile::decode(&bytes)
        .map_err(|error| failure(format!("the profile {shown}: {error}")))?;
    let profile = BASE64.encode(&bytes);
    let done = place.ask(ProfileRequest::Import { profile, name })?;
    let ProfileDone::Imported(profile) = done else {
        return Err(unexpected(done));
    };
    let mut output = Output::open()?;
    output.line(&line(&profile))?;
    output.flush()?;
    Ok(())
}

fn unexpected(done: ProfileDone) -> Failure {
    not_that(&Done::Profile(done))
}
