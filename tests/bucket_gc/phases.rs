//! What the two phases list and delete.

use std::time::Duration;

use castore_fs::store::{BucketGcOptions, BucketObjects};

use super::*;

#[test]
fn what_no_root_reaches_is_deleted_after_the_grace_of_its_list() {
    let bucket = with_garbage();
    let before = bucket.collected();
    let marked = collect(&bucket, HOUR).unwrap();
    assert_eq!(marked.deleted, BucketObjects::default());
    // The common blob and its chunk stay.
    let candidates = marked.candidates;
    assert_eq!((candidates.closures, candidates.blobs), (1, 6));
    assert!(
        candidates.chunks > 6 && candidates.bytes > 2 << 20,
        "{candidates:?}"
    );
    let until = bucket.now() + HOUR.as_secs();
    assert_eq!(marked.candidates_until, Some(until));
    assert!(!marked.is_waiting);
    assert_eq!(bucket.collected(), before);

    bucket.advance(HOUR - Duration::from_secs(1));
    let waiting = collect(&bucket, HOUR).unwrap();
    assert!(waiting.is_waiting);
    assert_eq!(
        (waiting.candidates, waiting.candidates_until),
        (candidates, Some(until))
    );
    assert_eq!(bucket.collected(), before);

    bucket.advance(Duration::from_secs(1));
    let swept = collect(&bucket, HOUR).unwrap();
    assert_eq!(swept.deleted, candidates);
    assert_eq!(swept.candidates, BucketObjects::default());
    assert_eq!(read_all(&bucket), ["one"]);
    let left: BTreeSet<_> = bucket.collected().into_iter().collect();
    assert_eq!(left, objects_of(1));
    // The lock was released.
    assert!(!bucket.objects().contains_key("castore-fs/gc/lock"));
}

#[test]
fn what_is_younger_than_the_grace_is_spared_and_reported() {
    let bucket = S3Bucket::start();
    add(&open(&bucket), "one", 1);
    let written = bucket.now();
    remove(&open(&bucket), "one");
    bucket.advance(HOUR / 2);
    let spared = collect(&bucket, HOUR).unwrap();
    assert_eq!(spared.candidates, BucketObjects::default());
    assert_eq!(spared.grace.closures, 1);
    assert_eq!(spared.grace_until, Some(written + HOUR.as_secs()));
    // An empty list is no reason to wait.
    bucket.advance(HOUR / 2);
    let listed = collect(&bucket, HOUR).unwrap();
    assert_eq!(listed.candidates, spared.grace);
    assert_eq!(listed.grace, BucketObjects::default());
}

#[test]
fn without_a_grace_one_call_does_all() {
    let bucket = with_garbage();
    let all = collect(&bucket, Duration::ZERO).unwrap();
    assert_eq!((all.deleted.closures, all.candidates.count()), (1, 0));
    assert_eq!(read_all(&bucket), ["one"]);
    let left: BTreeSet<_> = bucket.collected().into_iter().collect();
    assert_eq!(left, objects_of(1));
    // What was written at the moment of a mark may be written again at that moment: it stays.
    remove(&open(&bucket), "one");
    add(&open(&bucket), "three", 3);
    remove(&open(&bucket), "three");
    let (before, left) = (bucket.collected(), objects_of(3));
    collect(&bucket, Duration::ZERO).unwrap();
    assert!(
        left.iter().all(|path| bucket.collected().contains(path)),
        "{before:?}"
    );
    bucket.advance(Duration::from_secs(1));
    collect(&bucket, Duration::ZERO).unwrap();
    let empty = empty_blob();
    assert_eq!(bucket.collected(), [empty]);
}

/// The empty blob belongs to every tree.
fn empty_blob() -> String {
    let hex = Digest::empty_blob().to_hex();
    format!("blobs/b3/{}/{hex}", &hex[..4])
}

#[test]
fn a_dry_run_without_a_grace_reports_what_one_call_deletes() {
    let bucket = with_garbage();
    bucket.advance(HOUR);
    let dry = BucketGcOptions {
        grace: Duration::ZERO,
        dry_run: true,
    };
    let would = open(&bucket).collect_garbage(&dry).unwrap();
    let did = collect(&bucket, Duration::ZERO).unwrap();
    assert!(did.deleted.count() > 0);
    assert_eq!(
        (would.deleted, would.candidates),
        (did.deleted, did.candidates)
    );
}

#[test]
fn a_dry_run_writes_nothing_and_reports_the_same() {
    let bucket = with_garbage();
    let dry = BucketGcOptions {
        grace: HOUR,
        dry_run: true,
    };
    for _ in 0..2 {
        let before = bucket.objects();
        bucket.take_requests();
        let would = open(&bucket).collect_garbage(&dry).unwrap();
        let requests = bucket.take_requests();
        let reads = |request: &String| request.starts_with("GET ") || request.starts_with("HEAD ");
        assert!(requests.iter().all(reads), "{requests:?}");
        assert_eq!(bucket.objects(), before);
        let done = collect(&bucket, HOUR).unwrap();
        assert_eq!(would.deleted, done.deleted);
        if would.deleted.count() == 0 {
            assert_eq!(would, done);
        }
        bucket.advance(HOUR);
    }
    assert_eq!(read_all(&bucket), ["one"]);
}

#[test]
fn what_is_none_of_ours_is_never_touched() {
    let bucket = with_garbage();
    let hex = Digest::of(b"of others").to_hex();
    let others = [
        format!("dirs/b3/0000/{hex}"),
        format!("blobs/b3/{}/{hex}.tmp", &hex[..4]),
        format!("chunks/{hex}"),
        "castore-fs/roots/notes".to_owned(),
        "index.html".to_owned(),
    ];
    // A root that is not readable would stop the collection.
    let others = others.iter().filter(|path| !path.contains("roots"));
    let others: Vec<_> = others.collect();
    others.iter().for_each(|path| bucket.put(path, b"others"));
    bucket.advance(HOUR);
    collect(&bucket, HOUR).unwrap();
    bucket.advance(HOUR);
    assert!(collect(&bucket, HOUR).unwrap().deleted.count() > 0);
    let left = bucket.objects();
    assert!(
        others.iter().all(|path| left.contains_key(*path)),
        "{left:?}"
    );
}

#[test]
fn what_is_below_an_object_that_stays_stays_though_no_root_reaches_that() {
    let bucket = with_garbage();
    // The blobs are old, and the closure was written again by an addition that has no root yet.
    let mut closures = bucket.collected().into_iter();
    let above = directories(&blobs(2))[1].digest().to_hex();
    let closure = closures.find(|path| path.ends_with(&above)).unwrap();
    let bytes = bucket.objects()[&closure].bytes.clone();
    bucket.put(&closure, &bytes);
    let before = bucket.collected();
    for _ in 0..2 {
        let report = collect(&bucket, HOUR).unwrap();
        assert_eq!((report.deleted.count(), report.candidates.count()), (0, 0));
        assert!(report.grace.chunks > 6, "{report:?}");
    }
    assert_eq!(bucket.collected(), before);
}
