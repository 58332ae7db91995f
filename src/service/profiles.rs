//! Profiles, for the control socket and the command line.

use std::sync::Arc;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use crate::profile::{Profile, ProfileError, ProfileKey, ProfileSummary, Profiles};

/// The requests for profiles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum ProfileRequest {
    /// List them.
    List,
    /// The bytes of one, with the recordings up to now.
    Export {
        /// Its key.
        name: String,
    },
    /// Store one, replacing any other with its key.
    Import {
        /// Its bytes, in base64.
        profile: String,
        /// Its key, if not the one in its bytes.
        name: Option<String>,
    },
    /// Remove one.
    Remove {
        /// Its key.
        name: String,
    },
}

/// The result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileDone {
    /// The list.
    Listed {
        /// A summary of each.
        profiles: Vec<ProfileStatus>,
        /// The errors of invalid ones.
        bad: Vec<String>,
    },
    /// The bytes of one, in base64.
    Exported(String),
    /// The stored one.
    Imported(ProfileStatus),
    /// The key of the removed one.
    Removed(String),
}

/// A summary of a profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileStatus {
    /// Its key: a root's name, or the `root` of a mount.
    pub name: String,
    /// The digest of the root that was recorded last.
    pub digest: String,
    /// Files that it names.
    pub files: u64,
    /// Extents of them, of up to 1 MiB, which are prefetched.
    pub extents: u64,
}

impl From<ProfileSummary> for ProfileStatus {
    fn from(summary: ProfileSummary) -> Self {
        Self {
            name: summary.profile_key.to_string(),
            digest: summary.digest.to_string(),
            files: summary.files,
            extents: summary.extents,
        }
    }
}

/// Makes the recorders write their recordings.
pub(super) type WriteRecordings = Arc<dyn Fn() + Send + Sync>;

/// Carries out `request` on `profiles`. Blocks.
pub fn obey(profiles: &Profiles, request: ProfileRequest) -> Result<ProfileDone, String> {
    let reported = |error: ProfileError| error.to_string();
    match request {
        ProfileRequest::List => {
            let (good, bad) = profiles.list().map_err(reported)?;
            Ok(ProfileDone::Listed {
                profiles: good.into_iter().map(Into::into).collect(),
                bad: bad.iter().map(ToString::to_string).collect(),
            })
        }
        ProfileRequest::Export { name } => {
            let profile_key = profile_key(&name)?;
            let profile = profiles.load(&profile_key).map_err(reported)?;
            let none = || {
                reported(ProfileError::None {
                    profile_key: profile_key.clone(),
                    dir: profiles.dir().to_owned(),
                })
            };
            let bytes = profile.ok_or_else(none)?.encode();
            Ok(ProfileDone::Exported(BASE64.encode(&bytes)))
        }
        ProfileRequest::Import { profile, name } => {
            let bytes = BASE64.decode(profile.as_bytes());
            let bytes = bytes.map_err(|error| error.to_string())?;
            let mut profile = Profile::decode(&bytes).map_err(|error| error.to_string())?;
            if let Some(name) = name {
                profile = profile.renamed(profile_key(&name)?);
            }
            profiles.put(&profile).map_err(reported)?;
            Ok(ProfileDone::Imported(ProfileSummary::of(&profile).into()))
        }
        ProfileRequest::Remove { name } => {
            let profile_key = profile_key(&name)?;
            profiles.remove(&profile_key).map_err(reported)?;
            Ok(ProfileDone::Removed(profile_key.to_string()))
        }
    }
}

fn profile_key(name: &str) -> Result<ProfileKey, String> {
    ProfileKey::new(name.as_bytes()).ok_or_else(|| format!("{name:?} is the name of no root"))
}
