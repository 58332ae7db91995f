//! The operations and the fields of their requests.

/// A field of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// A word.
    Word,
    /// A text.
    Text,
    /// A list whose elements are so many texts each.
    Texts(u64),
    /// Data in frames (a length, then so many bytes, the last of them empty) up to the end of the request.
    Frames,
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $code:literal [$($field:expr),*],)*) => {
        /// What a client asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Operation {
            $($(#[$doc])* $name,)*
        }

        impl Operation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The word that a request begins with.
            pub fn code(self) -> u64 {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// The fields that follow.
            pub fn fields(self) -> &'static [Field] {
                use Field::{Frames, Text, Texts, Word};
                // Not every one is in each list.
                let _ = (Frames, Text, Texts, Word);
                match self {
                    $(Self::$name => &[$($field),*],)*
                }
            }
        }
    };
}

operations! {
    /// Whether a path is valid.
    IsValidPath = 1 [Text],
    /// Obsolete: the references of a path.
    QueryReferences = 5 [Text],
    /// The paths that refer to a path.
    QueryReferrers = 6 [Text],
    /// Adds a path: name, how it is addressed, references, repair, contents.
    AddToStore = 7 [Text, Text, Texts(1), Word, Frames],
    /// Obsolete: adds a text.
    AddTextToStore = 8 [Text, Text, Texts(1)],
    /// Builds or substitutes paths: the paths, the mode.
    BuildPaths = 9 [Texts(1), Word],
    /// Makes a path valid.
    EnsurePath = 10 [Text],
    /// Keeps a path from being collected while the connection lasts.
    AddTempRoot = 11 [Text],
    /// Makes a symbolic link a root.
    AddIndirectRoot = 12 [Text],
    /// Waits for a running collection.
    SyncWithGc = 13 [],
    /// The roots of the collector.
    FindRoots = 14 [],
    /// Obsolete: a path in the format of `nix-store --export`.
    ExportPath = 16 [Text, Word],
    /// Obsolete: the derivation of a path.
    QueryDeriver = 18 [Text],
    /// The client's settings: twelve numbers, then pairs.
    SetOptions = 19 [Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Texts(2)],
    /// Collects garbage: what, which paths, whether alive or not, how much, and three unused numbers.
    CollectGarbage = 20 [Word, Texts(1), Word, Word, Word, Word, Word],
    /// Obsolete: what a substituter has of a path.
    QuerySubstitutablePathInfo = 21 [Text],
    /// Obsolete: the outputs of a derivation.
    QueryDerivationOutputs = 22 [Text],
    /// All valid paths.
    QueryAllValidPaths = 23 [],
    /// What is known of a path.
    QueryPathInfo = 26 [Text],
    /// Obsolete: paths in the format of `nix-store --export`, which the server asks for.
    ImportPaths = 27 [],
    /// Obsolete: the names of the outputs of a derivation.
    QueryDerivationOutputNames = 28 [Text],
    /// The path with a hash.
    QueryPathFromHashPart = 29 [Text],
    /// What substituters have of paths: pairs of path and content address.
    QuerySubstitutablePathInfos = 30 [Texts(2)],
    /// Which of some paths are valid, and whether to substitute others.
    QueryValidPaths = 31 [Texts(1), Word],
    /// Which of some paths substituters have.
    QuerySubstitutablePaths = 32 [Texts(1)],
    /// The valid derivations of a path.
    QueryValidDerivers = 33 [Text],
    /// Makes equal files one.
    OptimiseStore = 34 [],
    /// Checks the store: contents too, repair.
    VerifyStore = 35 [Word, Word],
    /// Builds a derivation: its path, outputs (name, path, method, hash), sources, platform, program,
    /// arguments, environment, mode.
    BuildDerivation = 36 [Text, Texts(4), Texts(1), Text, Text, Texts(1), Texts(2), Word],
    /// Adds signatures to a path.
    AddSignatures = 37 [Text, Texts(1)],
    /// The contents of a path.
    NarFromPath = 38 [Text],
    /// Adds a path with what is known of it; then repair, whether unsigned is fine, contents.
    AddToStoreNar = 39 [Text, Text, Text, Texts(1), Word, Word, Word, Texts(1), Text, Word, Word, Frames],
    /// What building some paths would take.
    QueryMissing = 40 [Texts(1)],
    /// The outputs of a derivation by name.
    QueryDerivationOutputMap = 41 [Text],
    /// Adds the realisation of a derivation that is addressed by content.
    RegisterDrvOutput = 42 [Text],
    /// The realisations of an output of a derivation that is addressed by content.
    QueryRealisation = 43 [Text],
    /// Adds paths: repair, whether unsigned is fine, contents.
    AddMultipleToStore = 44 [Word, Word, Frames],
    /// Adds the log of a build.
    AddBuildLog = 45 [Text, Frames],
    /// As [`BuildPaths`](Self::BuildPaths), with a result for each.
    BuildPathsWithResults = 46 [Texts(1), Word],
    /// Makes a symbolic link to a path, and a root of it.
    AddPermRoot = 47 [Text, Text],
}

impl Operation {
    /// The operation of a request that begins with `code`.
    pub fn from_code(code: u64) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|operation| operation.code() == code)
    }

    /// Whether data in frames end the request.
    pub fn has_frames(self) -> bool {
        self.fields().last() == Some(&Field::Frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_read_back() {
        for operation in Operation::ALL {
            assert_eq!(Operation::from_code(operation.code()), Some(*operation));
        }
        for removed in [0, 2, 3, 4, 15, 17, 24, 25, 48, u64::MAX] {
            assert_eq!(Operation::from_code(removed), None);
        }
        assert!(Operation::AddMultipleToStore.has_frames());
        assert!(!Operation::IsValidPath.has_frames());
    }
}
