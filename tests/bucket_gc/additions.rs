//! Additions beside collections.

use std::sync::{Arc, Mutex};

use super::*;

#[test]
fn an_addition_between_the_phases_sends_candidates_again() {
    let bucket = with_garbage();
    collect(&bucket, HOUR).unwrap();
    let store = open(&bucket);
    let (ingest, blobs) = (store.ingest().unwrap(), blobs(2));
    bucket.take_requests();
    put_blobs(&*ingest, &blobs);
    let puts = bucket.take_requests();
    let puts = puts.iter().filter(|request| request.starts_with("PUT "));
    // Everything but the common blob: six lists, and more chunks.
    let lists = puts.clone().filter(|request| request.contains("/blobs/"));
    assert_eq!(lists.count(), 6);
    assert!(puts.count() > 6 + 5 + 4);
    // The sweep comes before the roots.
    bucket.advance(HOUR);
    let swept = collect(&bucket, HOUR).unwrap();
    assert_eq!((swept.deleted.closures, swept.deleted.blobs), (1, 0));
    commit_tree(ingest, "again", &blobs).unwrap();
    assert_eq!(read_all(&bucket), ["again", "one"]);
}

#[test]
fn a_root_of_candidates_that_is_added_between_the_phases_is_whole_after_the_sweep() {
    let bucket = with_garbage();
    collect(&bucket, HOUR).unwrap();
    let written = bucket.objects();
    bucket.advance(HOUR / 2);
    // A root alone, as `tag` puts it, and one by a copy that skips a tree that is there.
    let ingest = open(&bucket).ingest().unwrap();
    let [_, tree] = directories(&blobs(2));
    let root = Root {
        name: name("tagged"),
        node: tree.node(),
    };
    ingest.put_root(&root, None).unwrap();
    ingest.commit().unwrap();
    let (objects, two) = (bucket.objects(), objects_of(2));
    for (path, object) in &objects {
        let is_old = written.get(path) == Some(object);
        let is_common = objects_of(1).contains(path);
        assert!(
            !is_old || !two.contains(path) || is_common,
            "{path} was not written again"
        );
    }
    bucket.advance(HOUR / 2);
    assert_eq!(collect(&bucket, HOUR).unwrap().deleted.count(), 0);
    assert_eq!(read_all(&bucket), ["one", "tagged"]);
}

#[test]
fn an_addition_that_a_whole_collection_ran_beside_fails_and_the_next_one_sends_all() {
    let bucket = with_garbage();
    let store = open(&bucket);
    let (ingest, blobs) = (store.ingest().unwrap(), blobs(2));
    let digests: Vec<_> = blobs.iter().map(|blob| Digest::of(blob)).collect();
    assert_eq!(ingest.missing_blobs(&digests).unwrap(), [0_usize; 0]);
    collect(&bucket, HOUR).unwrap();
    bucket.advance(HOUR);
    collect(&bucket, HOUR).unwrap();
    let error = commit_tree(ingest, "again", &blobs).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a garbage collection deleted them"),
        "{error}"
    );
    assert_eq!(read_all(&bucket), ["one"]);
    let ingest = store.ingest().unwrap();
    assert_eq!(ingest.missing_blobs(&digests).unwrap(), [0, 1, 2, 3, 4, 5]);
    put_blobs(&*ingest, &blobs);
    commit_tree(ingest, "again", &blobs).unwrap();
    assert_eq!(read_all(&bucket), ["again", "one"]);
}

#[test]
fn a_tree_that_was_there_when_it_was_skipped_is_looked_for_at_the_commit() {
    let bucket = with_garbage();
    let store = open(&bucket);
    // As a copy does: the tree is there, and only what is above it is sent.
    let [_, tree] = directories(&blobs(2));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(runtime.block_on(store.has_tree(&tree.digest())).unwrap());
    collect(&bucket, HOUR).unwrap();
    bucket.advance(HOUR);
    collect(&bucket, HOUR).unwrap();
    let above = Directory::from_entries(vec![(name("tree"), tree.node())]).unwrap();
    let ingest = store.ingest().unwrap();
    ingest.put_directory(&above).unwrap();
    let root = Root {
        name: name("above"),
        node: above.node(),
    };
    ingest.put_root(&root, None).unwrap();
    // This process knows the Directories still, and not that the blobs are gone.
    let error = ingest.commit().unwrap_err();
    assert!(error.to_string().contains("garbage collection"), "{error}");
    assert_eq!(read_all(&bucket), ["one"]);
}

#[test]
fn what_an_addition_put_itself_and_lost_is_not_taken_for_there_by_the_next() {
    let bucket = with_garbage();
    collect(&bucket, HOUR).unwrap();
    let store = open(&bucket);
    let (ingest, blobs) = (store.ingest().unwrap(), blobs(3));
    put_blobs(&*ingest, &blobs);
    // Two collections later a chunk is gone; its blob is still there, with the list of chunks.
    bucket.advance(HOUR);
    collect(&bucket, HOUR).unwrap();
    let three = objects_of(3);
    let chunk = three
        .iter()
        .find(|path| path.starts_with("chunks/"))
        .unwrap();
    bucket.remove(chunk);
    let error = commit_tree(ingest, "three", &blobs).unwrap_err();
    assert!(error.to_string().contains("(chunk "), "{error}");
    add(&open(&bucket), "three", 3);
    assert_eq!(read_all(&bucket), ["one", "three"]);
}

/// The moment of the first deletion.
fn at_the_first_deletion(bucket: &S3Bucket, work: impl FnOnce() + Send + 'static) {
    let mut work = Some(work);
    bucket.hook(move |request| {
        if request.starts_with("POST ")
            && let Some(work) = work.take()
        {
            work();
        }
        None
    });
}

#[test]
fn an_addition_waits_for_a_sweep_that_deletes_what_it_needs() {
    let bucket = Arc::new(with_garbage());
    collect(&bucket, HOUR).unwrap();
    bucket.advance(HOUR);
    let adding = Arc::new(Mutex::new(None));
    let (other, added) = (bucket.clone(), adding.clone());
    at_the_first_deletion(&bucket, move || {
        // What no candidate is needed for does not wait.
        add(&open(&other), "three", 3);
        other.take_requests();
        let bucket = other.clone();
        let adding = std::thread::spawn(move || add(&open(&bucket), "two", 2));
        // It reads the lock, and waits until it reads it again.
        let mut requests = Vec::new();
        let reads = |requests: &[String]| {
            let reads = requests.iter();
            reads.filter(|request| request.contains("gc/lock")).count()
        };
        while reads(&requests) < 2 {
            requests.extend(other.take_requests());
            std::thread::yield_now();
        }
        let put = requests.iter().find(|request| request.starts_with("PUT "));
        assert_eq!(put, None, "a candidate was written while it may be deleted");
        *added.lock().unwrap() = Some(adding);
    });
    let swept = collect(&bucket, HOUR).unwrap();
    assert_eq!(swept.deleted.closures, 1);
    adding.lock().unwrap().take().unwrap().join().unwrap();
    assert_eq!(read_all(&bucket), ["one", "three", "two"]);
}

#[test]
fn a_root_that_a_sweep_could_not_see_is_made_sure_of() {
    let bucket = Arc::new(with_garbage());
    collect(&bucket, HOUR).unwrap();
    bucket.advance(HOUR);
    // The addition sent the candidates again, before the sweep began; and wrote its roots after the sweep had
    // listed them.
    let store = open(&bucket);
    let (ingest, blobs) = (store.ingest().unwrap(), blobs(2));
    put_blobs(&*ingest, &blobs);
    let ingest = Arc::new(Mutex::new(Some(ingest)));
    let committed = Arc::new(Mutex::new(None));
    let (taken, outcome) = (ingest.clone(), committed.clone());
    at_the_first_deletion(&bucket, move || {
        let ingest = taken.lock().unwrap().take().unwrap();
        let committing = std::thread::spawn(move || commit_tree(ingest, "again", &blobs));
        *outcome.lock().unwrap() = Some(committing);
    });
    collect(&bucket, HOUR).unwrap();
    bucket.unhook();
    let committing = committed.lock().unwrap().take().unwrap();
    committing.join().unwrap().unwrap();
    assert_eq!(read_all(&bucket), ["again", "one"]);
}

#[test]
fn roots_that_are_written_after_a_whole_collection_are_withdrawn() {
    late_roots("three");
}

#[test]
fn a_root_that_was_replaced_too_late_has_its_former_content_again() {
    late_roots("one");
}

/// An addition of content that is collected before its root `name` is written.
fn late_roots(name: &str) {
    let bucket = Arc::new(with_garbage());
    let before = read_root(&bucket, "one");
    let store = open(&bucket);
    let (ingest, blobs) = (store.ingest().unwrap(), blobs(3));
    put_blobs(&*ingest, &blobs);
    // The writer stops before it writes its root, for two graces.
    let (other, mut has_stopped) = (bucket.clone(), false);
    bucket.hook(move |request| {
        if request.starts_with("PUT ") && request.contains("/roots/") && !has_stopped {
            has_stopped = true;
            for _ in 0..2 {
                other.advance(HOUR);
                collect(&other, HOUR).unwrap();
            }
        }
        None
    });
    let error = commit_tree(ingest, name, &blobs).unwrap_err();
    bucket.unhook();
    assert!(error.to_string().contains("garbage collection"), "{error}");
    assert_eq!(read_all(&bucket), ["one"]);
    assert_eq!(read_root(&bucket, "one"), before);
    add(&store, "three", 3);
    assert_eq!(read_all(&bucket), ["one", "three"]);
}

#[test]
fn a_bucket_without_collections_costs_an_addition_three_requests() {
    let bucket = S3Bucket::start();
    let store = open(&bucket);
    let ingest = store.ingest().unwrap();
    let blobs = blobs(1);
    bucket.take_requests();
    put_blobs(&*ingest, &blobs);
    commit_tree(ingest, "one", &blobs).unwrap();
    let requests = bucket.take_requests();
    let state = requests
        .iter()
        .filter(|request| request.contains("castore-fs/gc/"));
    assert_eq!(state.count(), 3, "{requests:?}");
}
