//! The answers to operations.

use std::collections::HashSet;
use std::str::FromStr;

use tonic::Status;

use super::wire::{ConversationEnd, Wire};
use crate::castore::NodeRef;
use crate::nix::daemon_protocol::{
    Encoder, LAST, Operation, OperationFailure, Value, Version, put_valid_path,
};
use crate::nix::{StorePath, StorePathHash, derivation_outputs};
use crate::server::limits::FRAME;
use crate::server::respond::{answer, ask};
use crate::store::{Blocking, Error, ValidPath};
use crate::stores::ValidPaths;
use crate::tree::{NarStream, TreePath};

/// What a result of a build says of a path that is there.
const ALREADY_VALID: u64 = 2;
/// What it says of one that is not.
const NO_SUBSTITUTERS: u64 = 14;
/// Bytes of a list of all paths that are encoded at once.
const LIST_PART: usize = 64 << 10;
/// Bytes of a client's text that an error repeats.
const REPEATED: usize = 300;
/// Bytes of a derivation that are read for its outputs, which are at its beginning.
const DERIVATION: usize = 1 << 20;

/// Answers operations out of a store.
pub(super) struct Answers {
    paths: ValidPaths,
}

/// Whether an operation was answered, or why it was not.
type Answered = Result<(), OperationFailure>;

/// Takes the values of a request's fields, one after the other.
struct Values(std::vec::IntoIter<Value>);

impl Values {
    fn text(&mut self) -> Vec<u8> {
        match self.0.next() {
            Some(Value::Text(text)) => text,
            _ => Vec::new(),
        }
    }

    fn path(&mut self) -> Result<StorePath, OperationFailure> {
        store_path(&self.text())
    }

    fn texts(&mut self) -> Vec<Vec<u8>> {
        match self.0.next() {
            Some(Value::Texts(texts)) => texts,
            _ => Vec::new(),
        }
    }

    fn paths(&mut self) -> Result<Vec<StorePath>, OperationFailure> {
        self.texts().iter().map(|text| store_path(text)).collect()
    }
}

/// An absolute store path.
fn store_path(text: &[u8]) -> Result<StorePath, OperationFailure> {
    let path = std::str::from_utf8(text).ok();
    let path = path.filter(|text| text.starts_with('/'));
    let path = path.and_then(|text| StorePath::from_str(text).ok());
    path.ok_or_else(|| {
        let text = repeated(text);
        OperationFailure::new(format!("\"{text}\" is no path of the Nix store /nix/store"))
    })
}

/// A client's text for an error: printable, and only its beginning if it is long.
fn repeated(text: &[u8]) -> String {
    match text.get(..REPEATED) {
        Some(beginning) if text.len() > REPEATED => format!("{}…", beginning.escape_ascii()),
        _ => text.escape_ascii().to_string(),
    }
}

/// The path of a thing that is to be built; nothing for the outputs of a derivation.
fn plain_path(wanted: &[u8]) -> Result<Option<StorePath>, OperationFailure> {
    match wanted.contains(&b'!') {
        true => Ok(None),
        false => store_path(wanted).map(Some),
    }
}

impl From<Status> for OperationFailure {
    fn from(status: Status) -> Self {
        Self::new(status.message())
    }
}

impl Answers {
    pub(super) fn new(paths: ValidPaths) -> Self {
        Self { paths }
    }

    /// Answers `operation` with `values`. A failure is one that the client is to get.
    pub(super) async fn answer(
        &self,
        wire: &mut Wire,
        version: Version,
        operation: Operation,
        values: Vec<Value>,
    ) -> Result<Answered, ConversationEnd> {
        let values = Values(values.into_iter());
        match operation {
            Operation::NarFromPath => return self.send_nar(wire, values).await,
            Operation::QueryAllValidPaths => return self.send_all_paths(wire).await,
            _ => {}
        }
        let mut out = Encoder::default();
        out.word(LAST);
        let answered = self.put_result(version, operation, values, &mut out).await;
        if answered.is_ok() {
            let length = out.len();
            let bytes = out.take();
            // As far as there is room for it: it exists already.
            let _room = wire.state().responses.try_hold(length);
            wire.send_bytes(&bytes).await?;
        }
        Ok(answered)
    }

    async fn put_result(
        &self,
        version: Version,
        operation: Operation,
        mut values: Values,
        out: &mut Encoder,
    ) -> Answered {
        match operation {
            Operation::SetOptions => {}
            Operation::SyncWithGc | Operation::OptimiseStore => {
                out.word(1);
            }
            // A valid path stays anyway.
            Operation::AddTempRoot => {
                values.path()?;
                out.word(1);
            }
            Operation::FindRoots
            | Operation::QuerySubstitutablePathInfos
            | Operation::QuerySubstitutablePaths
            | Operation::QueryRealisation
            | Operation::QuerySubstitutablePathInfo => {
                // None: this store substitutes nothing that it does not call valid.
                out.word(0);
            }
            Operation::IsValidPath => {
                let valid = self.get(values.path()?).await?;
                out.word(valid.is_some().into());
            }
            Operation::QueryPathInfo => match self.get(values.path()?).await? {
                None => {
                    out.word(0);
                }
                Some(valid) => {
                    out.word(1);
                    put_valid_path(&valid.info, valid.since, out);
                }
            },
            Operation::QueryValidPaths => {
                let wanted = values.paths()?;
                let valid = self.check(wanted.clone()).await?;
                let there = wanted.iter().filter(|path| valid.contains_key(path));
                out.paths(there.collect::<Vec<_>>().into_iter());
            }
            Operation::QueryReferrers => {
                let path = values.path()?;
                self.require(&path).await?;
                let paths = self.paths.clone();
                let referrers = ask(async move { paths.referrers(&path).await }).await?;
                out.paths(referrers.iter());
            }
            Operation::QueryReferences => {
                let valid = self.require(&values.path()?).await?;
                out.paths(valid.info.references.iter());
            }
            Operation::QueryDeriver => {
                let valid = self.require(&values.path()?).await?;
                out.text(
                    valid
                        .info
                        .deriver
                        .map_or(String::new(), |path| path.absolute()),
                );
            }
            Operation::QueryValidDerivers => {
                let derivers = match self.get(values.path()?).await? {
                    Some(valid) => valid.info.deriver.into_iter().collect(),
                    None => Vec::new(),
                };
                let valid = self.check(derivers.clone()).await?;
                let derivers = derivers.iter().filter(|path| valid.contains_key(path));
                out.paths(derivers.collect::<Vec<_>>().into_iter());
            }
            Operation::QueryPathFromHashPart => {
                let text = values.text();
                let hash = StorePathHash::parse(&text).ok_or_else(|| {
                    let text = repeated(&text);
                    OperationFailure::new(format!("\"{text}\" is no hash of a store path"))
                })?;
                let paths = self.paths.clone();
                let found = ask(async move { paths.by_hash(hash).await }).await?;
                out.text(found.map_or(String::new(), |path| path.absolute()));
            }
            Operation::EnsurePath => {
                self.require(&values.path()?).await?;
                out.word(1);
            }
            Operation::QueryMissing => {
                let (missing, _) = self.split(&values.texts()).await?;
                out.word(0).word(0).texts(missing.iter()).word(0).word(0);
            }
            Operation::BuildPaths => {
                let (missing, derivations) = self.split(&values.texts()).await?;
                if let Some(first) = derivations.first().or(missing.first()) {
                    return Err(not_built(first));
                }
                out.word(1);
            }
            Operation::BuildPathsWithResults => {
                let wanted = values.texts();
                let (missing, derivations) = self.split(&wanted).await?;
                if let Some(first) = derivations.first() {
                    return Err(not_built(first));
                }
                let missing: HashSet<Vec<u8>> = missing.into_iter().collect();
                out.word(wanted.len() as u64);
                for wanted in &wanted {
                    let lacks = missing.contains(wanted);
                    let (status, message) = match lacks {
                        true => (NO_SUBSTITUTERS, not_built(wanted).message),
                        false => (ALREADY_VALID, String::new()),
                    };
                    out.text(wanted).word(status).text(message);
                    // How often, whether always the same, from when to when.
                    out.word(0).word(0).word(0).word(0);
                    if version >= Version::WITH_PROCESSOR_TIMES {
                        out.word(0).word(0);
                    }
                    // Outputs of derivations.
                    out.word(0);
                }
            }
            Operation::QueryDerivationOutputs
            | Operation::QueryDerivationOutputNames
            | Operation::QueryDerivationOutputMap => {
                let outputs = self.outputs(values.path()?).await?;
                match operation {
                    Operation::QueryDerivationOutputMap => {
                        out.word(outputs.len() as u64);
                        for (name, path) in &outputs {
                            out.text(name).text(path);
                        }
                    }
                    Operation::QueryDerivationOutputNames => {
                        out.texts(outputs.iter().map(|(name, _)| name));
                    }
                    _ => {
                        let paths = outputs.iter().filter(|(_, path)| !path.is_empty());
                        out.texts(paths.map(|(_, path)| path).collect::<Vec<_>>().into_iter());
                    }
                }
            }
            // The first two are answered part by part, before this.
            Operation::NarFromPath
            | Operation::QueryAllValidPaths
            | Operation::AddToStore
            | Operation::AddTextToStore
            | Operation::AddIndirectRoot
            | Operation::ExportPath
            | Operation::CollectGarbage
            | Operation::ImportPaths
            | Operation::VerifyStore
            | Operation::BuildDerivation
            | Operation::AddSignatures
            | Operation::AddToStoreNar
            | Operation::RegisterDrvOutput
            | Operation::AddMultipleToStore
            | Operation::AddBuildLog
            | Operation::AddPermRoot => return Err(refusal(operation)),
        }
        Ok(())
    }

    async fn get(&self, path: StorePath) -> Result<Option<ValidPath>, OperationFailure> {
        let paths = self.paths.clone();
        Ok(ask(async move { paths.get(&path).await }).await?)
    }

    async fn check(
        &self,
        wanted: Vec<StorePath>,
    ) -> Result<std::collections::HashMap<StorePath, ValidPath>, OperationFailure> {
        let paths = self.paths.clone();
        Ok(ask(async move { paths.check(&wanted).await }).await?)
    }

    async fn require(&self, path: &StorePath) -> Result<ValidPath, OperationFailure> {
        let valid = self.get(path.clone()).await?;
        valid.ok_or_else(|| {
            OperationFailure::new(format!("path '{}' is not valid", path.absolute()))
        })
    }

    /// Those of `wanted` that are not here, and those that are outputs of derivations.
    async fn split(
        &self,
        wanted: &[Vec<u8>],
    ) -> Result<(Vec<Vec<u8>>, Vec<Vec<u8>>), OperationFailure> {
        let mut plain = Vec::new();
        let mut derivations = Vec::new();
        for wanted in wanted {
            match plain_path(wanted)? {
                Some(path) => plain.push(path),
                None => derivations.push(wanted.clone()),
            }
        }
        let valid = self.check(plain.clone()).await?;
        let missing = plain.iter().filter(|path| !valid.contains_key(path));
        let missing = missing.map(|path| path.absolute().into_bytes());
        // A derivation's path, without the outputs.
        let unknown = derivations.iter().map(|wanted| {
            let end = wanted.iter().position(|byte| *byte == b'!');
            wanted[..end.unwrap_or(wanted.len())].to_vec()
        });
        Ok((missing.chain(unknown).collect(), derivations))
    }

    /// The outputs of a derivation that is here, with their paths as far as they are known.
    async fn outputs(&self, path: StorePath) -> Result<Vec<(String, String)>, OperationFailure> {
        let valid = self.require(&path).await?;
        let paths = self.paths.clone();
        let outputs = ask(async move {
            let root = paths.root(&valid).await?;
            let NodeRef::File { digest, size, .. } = root.node.borrow() else {
                return Ok(None);
            };
            let text = paths.store().read(&digest, size, 0, DERIVATION).await?;
            Ok(text.and_then(|text| derivation_outputs(&text)))
        });
        outputs.await?.ok_or_else(|| {
            let path = path.absolute();
            OperationFailure::new(format!("'{path}' is no derivation that can be read"))
        })
    }

    /// Sends all valid paths, part by part: a client that does not take them costs one part.
    async fn send_all_paths(&self, wire: &mut Wire) -> Result<Answered, ConversationEnd> {
        let paths = self.paths.clone();
        let all = match ask(async move { paths.all().await }).await {
            Ok(all) => all,
            Err(status) => return Ok(Err(status.into())),
        };
        let mut out = Encoder::default();
        out.word(LAST).word(all.len() as u64);
        for path in &*all {
            out.text(path.absolute());
            if out.len() >= LIST_PART {
                wire.send_bytes(&out.take()).await?;
            }
        }
        wire.send_bytes(&out.take()).await?;
        Ok(Ok(()))
    }

    /// Sends the contents of a path.
    async fn send_nar(
        &self,
        wire: &mut Wire,
        mut values: Values,
    ) -> Result<Answered, ConversationEnd> {
        let begun = async {
            let valid = self.require(&values.path()?).await?;
            let paths = self.paths.clone();
            let (valid, root) = ask(async move {
                let root = paths.root(&valid).await?;
                Ok::<_, Error>((valid, root))
            })
            .await?;
            let runtime = tokio::runtime::Handle::current();
            let store = Blocking::new(self.paths.store().clone(), runtime);
            let size = valid.info.nar.size;
            let path = TreePath::new(&root.name);
            Ok::<_, OperationFailure>(NarStream::new(store, path, root.node, 0..size))
        };
        let mut nar = match begun.await {
            Ok(nar) => nar,
            Err(failure) => return Ok(Err(failure)),
        };
        let mut begins = true;
        loop {
            let _room = wire.state().responses.clone().hold(FRAME).await;
            let made = answer(async move {
                let made = nar
                    .next(FRAME)
                    .map_err(|error| Status::internal(error.to_string()));
                Ok::<_, Status>((nar, made))
            });
            let (nar_after, made) = match made.await {
                Ok(made) => made,
                Err(status) => return Err(ConversationEnd::Other(status.message().to_owned())),
            };
            nar = nar_after;
            let bytes = match made {
                Ok(Some(bytes)) => bytes,
                Ok(None) if nar.remaining() == 0 => return Ok(Ok(())),
                Ok(None) => return Err(ConversationEnd::Other("a NAR ends early".to_owned())),
                // Nothing was sent yet, so that the client can be given the reason.
                Err(status) if begins => return Ok(Err(status.into())),
                Err(status) => {
                    tracing::warn!("an answer to Nix broke off: {}", status.message());
                    return Err(ConversationEnd::Other(status.message().to_owned()));
                }
            };
            if std::mem::take(&mut begins) {
                wire.send(Encoder::default().word(LAST)).await?;
            }
            wire.send_bytes(&bytes).await?;
        }
    }
}

/// Why a path, or `DERIVATION!OUTPUTS`, is not built.
fn not_built(wanted: &[u8]) -> OperationFailure {
    let end = wanted.iter().position(|byte| *byte == b'!');
    let (path, outputs) = wanted.split_at(end.unwrap_or(wanted.len()));
    let path = repeated(path);
    OperationFailure::new(match outputs.strip_prefix(b"!") {
        Some(outputs) => format!(
            "outputs of the derivation '{path}' are requested ({}), and this store of castore-fs builds nothing: \
             request their store paths",
            repeated(outputs)
        ),
        None => format!(
            "path '{path}' is not in this store of castore-fs, which builds and substitutes nothing"
        ),
    })
}

/// What is said to an operation that this store does not have.
fn refusal(operation: Operation) -> OperationFailure {
    let why = match operation {
        Operation::BuildDerivation => "builds nothing: build in a store with this one below it",
        Operation::CollectGarbage => {
            "is collected by `castore-fs gc`, and keeps what Nix was given as valid"
        }
        Operation::AddIndirectRoot | Operation::AddPermRoot => {
            "has no roots of Nix: what was given to Nix as valid stays"
        }
        Operation::VerifyStore => {
            "is checked by `castore-fs verify`; `nix store verify` checks single paths"
        }
        Operation::ExportPath => "exports by `castore-fs export`",
        _ => {
            "is only read by this socket: add to it with `castore-fs import`, or through a listener with the \
             protocol binary-cache"
        }
    };
    OperationFailure::new(format!("this store of castore-fs {why}"))
}
