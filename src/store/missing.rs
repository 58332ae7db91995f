//! Which of many blobs an upstream lacks that has no bulk check.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::failure::CallFailure;
use crate::castore::Digest;

/// Blobs that are checked at once.
const AT_ONCE: usize = 32;

/// Those of `digests`, with their indices, that an addition has not `put` there itself. The empty
/// blob is no exception: other programs require that it was put.
pub(super) fn not_put(digests: &[Digest], put: &HashSet<Digest>) -> Vec<(usize, Digest)> {
    let all = digests.iter().copied().enumerate();
    all.filter(|(_, digest)| !put.contains(digest)).collect()
}

/// The indices of those `wanted` that are missing, by `has`.
pub(super) async fn missing<F>(
    wanted: Vec<(usize, Digest)>,
    has: impl Fn(Digest) -> F,
) -> Result<Vec<usize>, CallFailure>
where
    F: Future<Output = Result<bool, CallFailure>>,
{
    let questions = wanted.into_iter().map(|(place, digest)| {
        let asked = has(digest);
        async move { Ok::<_, CallFailure>((!asked.await?).then_some(place)) }
    });
    let answers = stream::iter(questions).buffered(AT_ONCE);
    let answers: Vec<Option<usize>> = answers.try_collect().await?;
    Ok(answers.into_iter().flatten().collect())
}
