//! Several stores as one, and some of one's root nodes.

use std::sync::Arc;

use castore_fs::castore::{Digest, Name, Root};
use castore_fs::store::{Answer, Error, FilteredStore, JoinedStore, RootPattern, Store};

use super::{assert_changes_are_noticed, empty, put};
use kit::double::{Double, Trouble};

fn join(members: &[&Arc<Double>]) -> JoinedStore {
    let members = members.iter().map(|double| {
        let store: Arc<dyn Store> = Arc::<Double>::clone(double);
        (double.url().to_owned(), store)
    });
    JoinedStore::new("store:all".to_owned(), members.collect())
}

fn filter(double: &Arc<Double>, patterns: &[&str]) -> FilteredStore {
    let patterns = patterns
        .iter()
        .map(|text| RootPattern::parse(text).unwrap());
    let url = format!("store:some-of-{}", double.url());
    FilteredStore::new(url, double.clone(), patterns.collect())
}

fn names(roots: &[Root]) -> Vec<String> {
    roots.iter().map(|root| root.name.to_string()).collect()
}

#[tokio::test]
async fn a_root_is_the_first_members_that_has_one_of_that_name() {
    let (a, b) = (empty("a"), empty("b"));
    let first = put(&*a.inner(), "both", "the first");
    put(&*b.inner(), "both", "the second");
    let other = put(&*b.inner(), "other", "another");
    put(&*a.inner(), "zebra", "the last");
    let joined = join(&[&a, &b]);
    let found = joined.root(b"both").await.unwrap().unwrap();
    assert_eq!(found.node, first.node());
    let found = joined.root(b"other").await.unwrap().unwrap();
    assert_eq!(found.node, other.node());
    assert_eq!(joined.root(b"none").await.unwrap(), None);
    let listed = joined.roots().await.unwrap();
    assert_eq!(names(&listed), ["both", "other", "zebra"]);
    assert_eq!(listed[0].node, first.node());
    assert!(joined.path_info(b"both").await.unwrap().is_none());
}

#[tokio::test]
async fn an_unreachable_member_does_not_change_what_a_name_stands_for() {
    let (a, b) = (empty("a"), empty("b"));
    let first = put(&*a.inner(), "mine", "the first's");
    put(&*b.inner(), "both", "the second");
    let joined = join(&[&a, &b]);
    assert_eq!(names(&joined.roots().await.unwrap()), ["both", "mine"]);
    a.trouble(Trouble::Unreachable);
    // The first might have one of that name.
    assert!(joined.root(b"both").await.is_err());
    // A list stays what it was.
    assert_eq!(names(&joined.roots().await.unwrap()), ["both", "mine"]);
    // It is not reported as complete.
    assert!(joined.complete_roots().await.is_err());
    a.trouble(Trouble::None);
    assert_eq!(
        names(&joined.complete_roots().await.unwrap()),
        ["both", "mine"]
    );
    b.trouble(Trouble::Unreachable);
    let found = joined.root(b"mine").await.unwrap().unwrap();
    assert_eq!(found.node, first.node());
    assert!(joined.root(b"none").await.is_err());
    let never_listed = join(&[&a, &b]);
    assert!(never_listed.roots().await.is_err());
}

#[tokio::test]
async fn content_is_requested_from_the_member_that_led_to_it_and_then_from_the_others() {
    let (a, b) = (empty("a"), empty("b"));
    let tree = put(&*b.inner(), "tree", "contents");
    let (blob, size) = (Digest::of(b"contents"), 8);
    let joined = join(&[&a, &b]);
    // Without a lead, in order.
    assert!(joined.directory(&tree.digest()).await.unwrap().is_some());
    assert_eq!((a.asked(), b.asked()), (1, 1));
    let joined = join(&[&a, &b]);
    joined.root(b"tree").await.unwrap().unwrap();
    assert_eq!((a.asked(), b.asked()), (1, 1));
    joined.directory(&tree.digest()).await.unwrap().unwrap();
    let read = joined.read(&blob, size, 0, 8).await.unwrap().unwrap();
    assert_eq!(read, "contents");
    assert_eq!((a.asked(), b.asked()), (0, 2));
    // The member that led to it fails: any other will do.
    put(&*a.inner(), "copy", "contents");
    for trouble in [
        Trouble::Unreachable,
        Trouble::SendsCorruptBytes,
        Trouble::Truncates,
    ] {
        b.trouble(trouble);
        let read = joined.read(&blob, size, 0, 8).await.unwrap().unwrap();
        assert_eq!(read, "contents");
    }
}

#[tokio::test]
async fn an_object_is_absent_only_if_every_member_answers_so() {
    let (a, b) = (empty("a"), empty("b"));
    let joined = join(&[&a, &b]);
    let missing = Digest::of(b"missing");
    assert_eq!(joined.directory(&missing).await.unwrap(), None);
    assert_eq!(joined.read(&missing, 1, 0, 1).await.unwrap(), None);
    for double in [&a, &b] {
        double.trouble(Trouble::Unreachable);
        assert!(joined.directory(&missing).await.is_err());
        assert!(joined.read(&missing, 1, 0, 1).await.is_err());
        assert!(joined.has_blob(&missing).await.is_err());
        assert!(joined.blob_size(&missing).await.is_err());
        double.trouble(Trouble::None);
    }
    assert_eq!(joined.directory_now(&missing).unwrap(), Answer::Wait);
}

#[tokio::test]
async fn a_filter_shows_and_accepts_what_its_patterns_match() {
    let a = empty("a");
    let app = put(&*a.inner(), "app-1", "an app");
    put(&*a.inner(), "secret", "a secret");
    let filtered = filter(&a, &["app-*", "doc"]);
    assert!(filtered.root(b"app-1").await.unwrap().is_some());
    a.asked();
    assert_eq!(filtered.root(b"secret").await.unwrap(), None);
    assert_eq!(filtered.root_now(b"secret").unwrap(), Answer::Absent);
    assert_eq!(filtered.path_info(b"secret").await.unwrap(), None);
    assert_eq!(a.asked(), 0, "what is not shown is not asked for");
    assert_eq!(names(&filtered.roots().await.unwrap()), ["app-1"]);
    assert!(filtered.directory(&app.digest()).await.unwrap().is_some());
    let root = |name: &str| Root {
        name: Name::new(name.as_bytes()).unwrap(),
        node: app.node(),
    };
    let ingest = filtered.ingest().unwrap();
    ingest.put_root(&root("app-2"), None).unwrap();
    let error = ingest.put_root(&root("other"), None).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains("app-*, doc"), "{error}");
    let secret = Name::new(b"secret").unwrap();
    assert!(ingest.remove_root(&secret).is_err());
    ingest.commit().unwrap();
    let all = a.inner().roots().await.unwrap();
    assert_eq!(names(&all), ["app-1", "app-2", "secret"]);
}

#[tokio::test]
async fn filters_decide_which_member_of_a_join_gets_a_lookup() {
    let (a, b) = (empty("a"), empty("b"));
    put(&*a.inner(), "app-1", "a's app");
    let theirs = put(&*b.inner(), "lib-1", "b's library");
    put(&*a.inner(), "lib-1", "a's library, which is not shown");
    let members: Vec<(String, Arc<dyn Store>)> = vec![
        ("apps".to_owned(), Arc::new(filter(&a, &["app-*"]))),
        ("rest".to_owned(), b.clone()),
    ];
    let joined = JoinedStore::new("store:all".to_owned(), members);
    // The first is unreachable, but cannot have this name.
    a.trouble(Trouble::Unreachable);
    let found = joined.root(b"lib-1").await.unwrap().unwrap();
    assert_eq!((found.node, a.asked()), (theirs.node(), 0));
}

#[test]
fn a_change_of_any_members_roots_is_noticed() {
    let (a, b) = (empty("a"), empty("b"));
    assert_changes_are_noticed(&join(&[&a, &b]), [&a, &b]);
}

#[test]
fn a_join_is_written_to_by_its_members() {
    let (a, b) = (empty("a"), empty("b"));
    let error = join(&[&a, &b]).ingest().err().unwrap();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
}
