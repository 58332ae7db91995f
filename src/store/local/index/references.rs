//! What roots refer to, checked within a commit: then no other process can add or remove a root meanwhile.

use prost::Message;
use redb::ReadableTable;

use super::PATH_INFOS;
use super::change::IndexChange;
use super::root_records::{ROOT_RECORDS, StoredRoot};
use crate::castore::{Name, Printable};
use crate::nix::PathInfo;
use crate::store::Error;
use crate::store::root_change::{RootCondition, StorePathNames};

impl IndexChange<'_> {
    /// Fails if one of `conditions` does not hold now.
    pub(in super::super) fn check_conditions(
        &mut self,
        conditions: &[RootCondition],
    ) -> Result<(), Error> {
        let mut removed = StorePathNames::default();
        for condition in conditions {
            match condition {
                RootCondition::Present(name) => {
                    if self.root(name)?.is_none() {
                        let why = format!(
                            "it refers to \"{name}\", which was removed meanwhile: add that again"
                        );
                        return Err(self.refuse("a store path".to_owned(), why));
                    }
                }
                RootCondition::NotReferred(name) => removed.insert(name),
            }
        }
        self.check_unreferred(
            &removed,
            |name| format!("removing the root \"{name}\""),
            "it was added meanwhile",
        )
    }

    /// Fails if another root refers to one of `names`: `what` is refused, and `hint` ends the reason.
    pub(super) fn check_unreferred(
        &mut self,
        names: &StorePathNames<'_>,
        what: impl Fn(&Name) -> String,
        hint: &str,
    ) -> Result<(), Error> {
        if names.is_empty() {
            return Ok(());
        }
        let referrer = self.run(|txn| {
            let roots = txn.open_table(ROOT_RECORDS)?;
            let infos = txn.open_table(PATH_INFOS)?;
            for found in infos.iter()? {
                let (by, info) = found?;
                let by = by.value();
                let record = roots.get(by)?;
                let record = record.and_then(|record| StoredRoot::decode(record.value()));
                if record.is_none_or(|record| record.incomplete) {
                    continue;
                }
                // What cannot be read is as good as absent.
                let info = PathInfo::decode(info.value()).unwrap_or_default();
                let references = info.references.iter();
                let mut referred = references.filter_map(|hash| names.get(hash));
                if let Some(name) = referred.find(|name| name.as_bytes() != by) {
                    return Ok(Some((name.clone(), by.to_vec())));
                }
            }
            Ok(None)
        })?;
        match referrer {
            None => Ok(()),
            Some((name, by)) => {
                let why = format!("\"{}\" refers to it: {hint}", Printable(&by));
                Err(self.refuse(what(&name), why))
            }
        }
    }

    fn refuse(&self, what: String, why: String) -> Error {
        Error::Refused {
            store: self.index.dir.url().to_owned(),
            what,
            why,
        }
    }
}
