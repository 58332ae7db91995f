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

/// Bytes of a file that can be a profile, at most: more is none, and is not read.
const MOST_BYTES: u64 = 9 << 20;

/// See, ship and forget what mounts and guests with `warmup = "learn"` have learned
///
/// A profile says which files the users of a root read first. The next cold mount of that root, or of
/// another version of it, in a guest or not, fetches them ahead in that order; docs/warmup.md has the
/// rest. Without --folder the running service is asked.
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
    /// List the profiles that there are: of each how many files it names, and how many stretches of
    /// them, of up to 1 MiB
    List {
        #[command(flatten)]
        place: Place,
        /// One JSON object a profile
        #[arg(long)]
        json: bool,
    },
    /// Write a profile, with what was learned up to now, to standard output
    Export {
        #[command(flatten)]
        place: Place,
        /// The root's name, or the `root` of the mount
        name: String,
    },
    /// Put a profile in the place of what is known of its root
    ///
    /// It counts from the next mount on. A mount that is just learning of the same root puts what it has
    /// learned in front.
    Import {
        #[command(flatten)]
        place: Place,
        /// For the users of this root, instead of the one that the profile is of
        #[arg(long = "as", value_name = "NAME")]
        name: Option<String>,
        /// A file from `castore-fs profile export`; - is standard input
        file: PathBuf,
    },
    /// Forget profiles
    Rm {
        #[command(flatten)]
        place: Place,
        /// The roots' names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// Where profiles are.
#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    control: ControlArguments,
    /// The folder with the profiles, if not the running service's: `profiles` in its state folder
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
    format!("{}: {files} files, {stretches} stretches", profile.name)
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
    // Told here by the file's name; whoever takes it looks for himself.
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
