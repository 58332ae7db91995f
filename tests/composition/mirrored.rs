//! Several stores that hold the same.

use std::sync::Arc;
use std::time::Duration;

use castore_fs::castore::{Digest, Directory};
use castore_fs::store::{
    Answer, Error, MemberHealth, MemberOrder, MemberState, MemoryStore, Mirrors, Store,
};
use futures_util::future::join_all;
use tokio::time::{Instant, advance};

use super::{assert_changes_are_noticed, empty, holding, put};
use kit::double::{DEADLINE, Double, Trouble};

/// Mirrors `a` and `b` of a store with the root node `tree`.
struct Pair {
    a: Arc<Double>,
    b: Arc<Double>,
    mirrors: Mirrors,
    tree: Directory,
}

const CONTENTS: &str = "the file's contents";

impl Pair {
    fn new(order: MemberOrder) -> Self {
        let store = MemoryStore::new();
        let tree = put(&store, "tree", CONTENTS);
        let (a, b) = (holding("a", &store), holding("b", &store));
        let mirrors = mirrors(&[&a, &b], order);
        Self {
            a,
            b,
            mirrors,
            tree,
        }
    }

    async fn directory(&self) -> Result<Option<Directory>, Error> {
        self.mirrors.directory(&self.tree.digest()).await
    }

    /// How long an answer, which has to be right, takes.
    async fn takes(&self) -> Duration {
        let began = Instant::now();
        let found = self.directory().await.unwrap();
        assert_eq!(found.as_ref(), Some(&self.tree));
        began.elapsed()
    }

    async fn read(&self, size: usize) -> Result<Option<bytes::Bytes>, Error> {
        let digest = Digest::of(CONTENTS.as_bytes());
        self.mirrors.read(&digest, size as u64, 0, 1000).await
    }

    fn asked(&self) -> (u64, u64) {
        (self.a.asked(), self.b.asked())
    }

    fn health(&self) -> [MemberHealth; 2] {
        self.mirrors.health().members.try_into().unwrap()
    }

    fn states(&self) -> [MemberState; 2] {
        self.health().map(|member| member.state)
    }
}

fn mirrors(members: &[&Arc<Double>], order: MemberOrder) -> Mirrors {
    let members = members.iter().map(|double| {
        let store: Arc<dyn Store> = Arc::<Double>::clone(double);
        (double.url().to_owned(), store)
    });
    Mirrors::new("store:main".to_owned(), members.collect(), order)
}

use MemberState::{Corrupt, Open, Slow, Up};

#[tokio::test(start_paused = true)]
async fn only_the_first_gets_requests_while_it_is_healthy() {
    let pair = Pair::new(MemberOrder::Listed);
    for _ in 0..100 {
        assert_eq!(pair.takes().await, Duration::ZERO);
    }
    assert_eq!(pair.asked(), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failure_costs_nothing_and_the_failing_member_gets_no_requests_until_it_is_healthy() {
    let pair = Pair::new(MemberOrder::Listed);
    pair.a.trouble(Trouble::Unreachable);
    for _ in 0..10 {
        assert_eq!(pair.takes().await, Duration::ZERO);
    }
    assert_eq!(pair.asked(), (3, 10));
    let [a, b] = pair.health();
    assert_eq!((a.state, a.failures, b.state), (Open, 3, Up));
    assert!(a.last_failure.unwrap().contains("the endpoint is down"));
    // One probe in each pause, which doubles; its failure delays no reader.
    advance(Duration::from_secs(2)).await;
    for _ in 0..10 {
        assert_eq!(pair.takes().await, Duration::ZERO);
        tokio::task::yield_now().await;
    }
    assert_eq!(pair.asked(), (1, 10));
    advance(Duration::from_millis(1400)).await;
    pair.takes().await;
    assert_eq!(pair.asked(), (0, 1), "the second rest is longer");
    // It comes back: the preferred one, with the first probe.
    pair.a.trouble(Trouble::None);
    let version = pair.mirrors.roots_version().unwrap();
    advance(Duration::from_secs(2)).await;
    pair.takes().await;
    tokio::task::yield_now().await;
    assert_eq!((pair.asked(), pair.states()), ((1, 1), [Up, Up]));
    assert_ne!(version, pair.mirrors.roots_version().unwrap());
    pair.takes().await;
    assert_eq!(pair.asked(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_is_hedged_after_the_observed_p95() {
    let pair = Pair::new(MemberOrder::Listed);
    let usual = Duration::from_millis(20);
    pair.a.trouble(Trouble::Slow(usual));
    for _ in 0..64 {
        assert_eq!(pair.takes().await, usual);
    }
    assert_eq!(pair.asked(), (64, 0), "a usual time causes no hedge");
    pair.a.trouble(Trouble::Slow(Duration::from_secs(3)));
    let took = pair.takes().await;
    assert!(took >= usual && took < 2 * usual, "{took:?}");
    assert_eq!(pair.asked(), (1, 1));
    assert_eq!(pair.health()[0].hedges, 1);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_loses_hedges_is_avoided_and_probed() {
    let pair = Pair::new(MemberOrder::Listed);
    pair.a.trouble(Trouble::Slow(Duration::from_secs(3)));
    for _ in 0..5 {
        assert!(pair.takes().await >= Duration::from_millis(500));
    }
    assert_eq!(pair.states(), [Slow, Up]);
    pair.asked();
    assert_eq!(pair.takes().await, Duration::ZERO);
    assert_eq!(pair.asked(), (0, 1));
    // A probe that is as slow as before changes nothing, and delays no reader.
    advance(Duration::from_secs(2)).await;
    assert_eq!(pair.takes().await, Duration::ZERO);
    advance(Duration::from_secs(4)).await;
    assert_eq!((pair.asked(), pair.states()), ((1, 1), [Slow, Up]));
    // The slow one is still better than none.
    pair.b.trouble(Trouble::Unreachable);
    assert_eq!(pair.takes().await, Duration::from_secs(3));
    // Well again.
    pair.b.trouble(Trouble::None);
    pair.a.trouble(Trouble::None);
    // A probe that is still under way lands first.
    advance(Duration::from_secs(3)).await;
    advance(Duration::from_secs(60)).await;
    pair.takes().await;
    tokio::task::yield_now().await;
    assert_eq!(pair.states(), [Up, Up]);
}

#[tokio::test(start_paused = true)]
async fn asking_twice_cannot_double_the_load() {
    let pair = Pair::new(MemberOrder::Listed);
    // The first answers later and later, so that every question takes longer than usual; the second
    // never helps.
    pair.b.trouble(Trouble::Slow(Duration::from_secs(3600)));
    let (began, mut late) = (Instant::now(), Duration::from_millis(10));
    for _ in 0..500 {
        late += Duration::from_millis(1);
        pair.a.trouble(Trouble::Slow(late));
        pair.takes().await;
    }
    let (a, b) = pair.asked();
    let allowed = 10 + a / 10 + began.elapsed().as_secs();
    assert!(b > 50 && b <= allowed, "{b} of {a}, {allowed} allowed");
    assert!(allowed < 300, "this shows something");
}

#[tokio::test(start_paused = true)]
async fn many_waiters_for_one_that_hangs_ask_the_next_together() {
    let pair = Pair::new(MemberOrder::Listed);
    pair.a.trouble(Trouble::Hangs);
    // More than the budget of hedges.
    let all = join_all((0..100).map(|_| pair.takes())).await;
    let longest = all.into_iter().max().unwrap();
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn no_caller_waits_for_a_deadline_twice() {
    let pair = Pair::new(MemberOrder::Listed);
    pair.a.trouble(Trouble::Hangs);
    pair.b.trouble(Trouble::Hangs);
    let began = Instant::now();
    let error = pair.directory().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(began.elapsed() < DEADLINE + Duration::from_secs(1));
    let began = Instant::now();
    let error = pair.directory().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(pair.states(), [Open, Open]);
    // Without a better member, a request serves as the probe.
    pair.b.trouble(Trouble::None);
    advance(Duration::from_secs(2)).await;
    pair.takes().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_is_absent_only_if_every_member_answers_so() {
    let pair = Pair::new(MemberOrder::Listed);
    let missing = Digest::of(b"missing");
    assert_eq!(pair.mirrors.directory(&missing).await.unwrap(), None);
    assert_eq!(pair.asked(), (1, 1));
    assert!(!pair.mirrors.has_blob(&missing).await.unwrap());
    assert_eq!(pair.mirrors.root(b"missing").await.unwrap(), None);
    assert_eq!(pair.mirrors.read(&missing, 1, 0, 1).await.unwrap(), None);
    // The in-place method never answers so: it takes requests.
    assert_eq!(pair.mirrors.root_now(b"missing").unwrap(), Answer::Wait);
    for double in [&pair.a, &pair.b] {
        double.trouble(Trouble::Unreachable);
        // Later, when it is left alone, that is no "not found" either.
        for _ in 0..5 {
            let error = pair.mirrors.root(b"missing").await.unwrap_err();
            assert!(
                matches!(error, Error::Undecided { late: false, .. }),
                "{error}"
            );
            assert!(
                error.to_string().contains("the endpoint is down"),
                "{error}"
            );
        }
        double.trouble(Trouble::Hangs);
        advance(Duration::from_secs(100)).await;
        let error = pair.mirrors.root(b"missing").await.unwrap_err();
        tokio::task::yield_now().await;
        double.trouble(Trouble::None);
        advance(Duration::from_secs(100)).await;
        let _ = (error, pair.mirrors.root(b"missing").await);
        tokio::task::yield_now().await;
        assert_eq!(pair.mirrors.root(b"missing").await.unwrap(), None);
    }
    pair.b.trouble(Trouble::Hangs);
    let error = pair.mirrors.root(b"missing").await.unwrap_err();
    assert!(
        matches!(error, Error::Undecided { late: true, .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_one_lacks_another_has() {
    let (a, b) = (empty("a"), empty("b"));
    let tree = put(&*b.inner(), "tree", CONTENTS);
    let mirrors = mirrors(&[&a, &b], MemberOrder::Listed);
    assert_eq!(mirrors.directory(&tree.digest()).await.unwrap(), Some(tree));
    assert!(mirrors.root(b"tree").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_member_gets_nothing_through_is_marked_and_asked_last() {
    let pair = Pair::new(MemberOrder::Listed);
    pair.a.trouble(Trouble::SendsCorruptBytes);
    pair.takes().await;
    assert_eq!(pair.states(), [Corrupt, Up]);
    assert_eq!(pair.health()[0].corrupt_responses, 1);
    pair.a.trouble(Trouble::None);
    pair.asked();
    pair.takes().await;
    assert_eq!(pair.asked(), (0, 1), "it is avoided");
    // Its "not found" does not count.
    assert_eq!(pair.mirrors.root(b"missing").await.unwrap(), None);
    assert_eq!(pair.asked(), (0, 1));
    // It is better than none: its bytes are verified.
    pair.b.trouble(Trouble::Unreachable);
    pair.takes().await;
    assert!(pair.mirrors.root(b"missing").await.is_err());
    pair.b.trouble(Trouble::None);
    advance(Duration::from_secs(9 * 60)).await;
    assert_eq!(pair.states()[0], Corrupt);
    advance(Duration::from_secs(2 * 60)).await;
    assert_eq!(pair.states()[0], Up);
    // The next time it takes longer.
    pair.a.trouble(Trouble::SendsCorruptBytes);
    pair.takes().await;
    advance(Duration::from_secs(15 * 60)).await;
    assert_eq!(pair.states()[0], Corrupt);
}

#[tokio::test(start_paused = true)]
async fn another_members_right_blob_shows_which_one_is_corrupt() {
    for trouble in [Trouble::SendsCorruptBytes, Trouble::Truncates] {
        let pair = Pair::new(MemberOrder::Listed);
        pair.a.trouble(trouble);
        let bytes = pair.read(CONTENTS.len()).await.unwrap().unwrap();
        assert_eq!(bytes, CONTENTS);
        assert_eq!(pair.states(), [Corrupt, Up], "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_with_a_wrong_size_marks_no_member() {
    let pair = Pair::new(MemberOrder::Listed);
    // The memory stores themselves object to the size.
    let error = pair.read(CONTENTS.len() + 1).await.unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
    assert!(error.to_string().contains("bytes instead of"), "{error}");
    assert_eq!(pair.states(), [Up, Up]);
}

#[tokio::test(start_paused = true)]
async fn the_fastest_is_asked_first_if_that_is_wanted() {
    let pair = Pair::new(MemberOrder::Fastest);
    pair.a.trouble(Trouble::Slow(Duration::from_millis(20)));
    pair.b.trouble(Trouble::Slow(Duration::from_millis(10)));
    for _ in 0..20 {
        pair.takes().await;
    }
    assert_eq!(pair.asked(), (1, 19));
}

#[tokio::test(start_paused = true)]
async fn in_a_race_all_get_the_request_and_the_fastest_answer_counts() {
    let pair = Pair::new(MemberOrder::Racing);
    pair.a.trouble(Trouble::Slow(Duration::from_millis(20)));
    pair.b.trouble(Trouble::Slow(Duration::from_millis(10)));
    for _ in 0..20 {
        assert_eq!(pair.takes().await, Duration::from_millis(10));
    }
    assert_eq!(pair.asked(), (20, 20));
    pair.b.trouble(Trouble::Unreachable);
    assert_eq!(pair.takes().await, Duration::from_millis(20));
    // No hedge was lost: all were asked at the same time.
    assert_eq!(pair.states(), [Up, Up]);
}

#[tokio::test(start_paused = true)]
async fn what_any_member_has_cached_is_answered_in_place() {
    let store = MemoryStore::new();
    let tree = put(&store, "tree", CONTENTS);
    let upstream = holding("far", &store);
    let local_store = Arc::new(Double::local_store("near", store));
    let mirrors = mirrors(&[&upstream, &local_store], MemberOrder::Listed);
    let now = mirrors.directory_now(&tree.digest()).unwrap();
    assert_eq!(now, Answer::Found(tree));
    let mut buffer = [0; 100];
    let (digest, size) = (Digest::of(CONTENTS.as_bytes()), CONTENTS.len());
    let now = mirrors
        .read_now(&digest, size as u64, 0, &mut buffer)
        .unwrap();
    assert_eq!(
        (now, &buffer[..size]),
        (Answer::Found(size), CONTENTS.as_bytes())
    );
    assert!(matches!(
        mirrors.root_now(b"tree").unwrap(),
        Answer::Found(_)
    ));
    assert_eq!((upstream.asked(), local_store.asked()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_list_of_roots_is_the_first_healthy_ones() {
    let (a, b) = (empty("a"), empty("b"));
    put(&*a.inner(), "one", "1");
    put(&*b.inner(), "one", "1");
    put(&*b.inner(), "two", "2");
    let mirrors = mirrors(&[&a, &b], MemberOrder::Listed);
    assert_eq!(mirrors.roots().await.unwrap().len(), 1);
    // What is in none of them is in no mirror.
    assert_eq!(mirrors.complete_roots().await.unwrap().len(), 2);
    a.trouble(Trouble::Unreachable);
    assert_eq!(mirrors.roots().await.unwrap().len(), 2);
    assert!(mirrors.complete_roots().await.is_err());
    b.trouble(Trouble::Unreachable);
    assert!(mirrors.roots().await.is_err());
}

#[test]
fn a_change_of_any_members_roots_is_noticed() {
    let (a, b) = (empty("a"), empty("b"));
    let mirrors = mirrors(&[&a, &b], MemberOrder::Listed);
    assert_changes_are_noticed(&mirrors, [&a, &b]);
    let seen = mirrors.roots_version().unwrap();
    let now = mirrors
        .wait_for_roots(seen, Duration::from_millis(1))
        .unwrap();
    assert_eq!(now, seen);
}

#[test]
fn mirrors_are_written_to_one_by_one() {
    let (a, b) = (empty("a"), empty("b"));
    let error = mirrors(&[&a, &b], MemberOrder::Listed)
        .ingest()
        .err()
        .unwrap();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("one of a, b"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn every_question_survives_every_trouble_of_one_member() {
    let troubles = [
        Trouble::Unreachable,
        Trouble::Hangs,
        Trouble::Slow(Duration::from_secs(5)),
        Trouble::SendsCorruptBytes,
        Trouble::Truncates,
    ];
    for order in [
        MemberOrder::Listed,
        MemberOrder::Fastest,
        MemberOrder::Racing,
    ] {
        for trouble in troubles {
            let pair = Pair::new(order);
            pair.a.trouble(trouble);
            let mirrors = &pair.mirrors;
            let digest = Digest::of(CONTENTS.as_bytes());
            let size = CONTENTS.len() as u64;
            for _ in 0..10 {
                assert_eq!(pair.directory().await.unwrap().as_ref(), Some(&pair.tree));
                let read = pair.read(CONTENTS.len()).await.unwrap();
                assert_eq!(read.unwrap(), CONTENTS);
                assert!(mirrors.root(b"tree").await.unwrap().is_some());
                assert_eq!(mirrors.roots().await.unwrap().len(), 1);
                assert!(mirrors.has_blob(&digest).await.unwrap());
                assert_eq!(mirrors.blob_size(&digest).await.unwrap(), Some(size));
                let table = mirrors.group_table(&digest, size).await.unwrap();
                assert!(table.is_some());
                assert_eq!(mirrors.path_info(b"tree").await.unwrap_or(None), None);
            }
        }
    }
}
