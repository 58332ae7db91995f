//! Failures, and processes that die, at any point of a collection.

use std::time::Duration;

use super::*;

/// Fails every request that has all of `parts`, with this status.
fn fail(bucket: &S3Bucket, status: u16, parts: &'static [&'static str]) {
    bucket.hook(move |request| {
        let fails = parts.iter().all(|part| request.contains(part));
        fails.then_some(status)
    });
}

fn closure_of(seed: u64) -> String {
    let hex = directories(&blobs(seed))[1].digest().to_hex();
    format!("dirs/b3/{}/{hex}", &hex[..4])
}

#[test]
fn a_directory_that_is_missing_or_damaged_stops_both_phases_and_names_the_root() {
    for is_listed in [false, true] {
        let bucket = with_garbage();
        if is_listed {
            collect(&bucket, HOUR).unwrap();
            bucket.advance(HOUR);
        }
        let closure = closure_of(1);
        let whole = bucket.objects()[&closure].clone();
        let other = bucket.objects()[&closure_of(2)].clone();
        let cut = whole.bytes[..whole.bytes.len() / 2].to_vec();
        for bytes in [
            None,
            Some(other.bytes.clone()),
            Some(cut),
            Some(b"no zstd".to_vec()),
        ] {
            match bytes {
                None => bucket.remove(&closure),
                Some(bytes) => bucket.put(&closure, &bytes),
            }
            let before = bucket.collected();
            let error = collect(&bucket, HOUR).unwrap_err().to_string();
            assert!(error.contains("root \"one\": "), "{error}");
            assert!(error.contains("othing more was deleted"), "{error}");
            assert_eq!(bucket.collected(), before);
            assert!(!bucket.objects().contains_key("castore-fs/gc/lock"));
            bucket.put(&closure, &whole.bytes);
        }
        // Mended, it goes on where it was.
        collect(&bucket, HOUR).unwrap();
        bucket.advance(HOUR);
        collect(&bucket, HOUR).unwrap();
        assert_eq!(read_all(&bucket), ["one"]);
        assert!(!bucket.collected().contains(&closure_of(2)));
    }
}

#[test]
fn a_list_of_chunks_that_is_damaged_stops_a_collection() {
    let bucket = with_garbage();
    let large = Digest::of(&blobs(1)[5]).to_hex();
    let path = format!("blobs/b3/{}/{large}", &large[..4]);
    bucket.put(&path, b"no list");
    let before = bucket.collected();
    let error = collect(&bucket, HOUR).unwrap_err().to_string();
    assert!(
        error.contains(&large) && error.contains("verify"),
        "{error}"
    );
    assert_eq!(bucket.collected(), before);
}

#[test]
fn a_request_that_fails_deletes_nothing() {
    for parts in [
        &["list-type=2", "roots"][..],
        &["list-type=2", "dirs"],
        &["list-type=2", "blobs"],
        &["list-type=2", "chunks", "continuation-token"],
        &["GET ", "/castore-fs/roots/"],
        &["GET ", "/dirs/"],
        &["GET ", "/blobs/"],
        &["GET ", "gc/candidates"],
        &["PUT ", "gc/lock"],
    ] {
        let bucket = with_garbage();
        collect(&bucket, HOUR).unwrap();
        bucket.advance(HOUR);
        let before = bucket.collected();
        fail(&bucket, 403, parts);
        collect(&bucket, HOUR).unwrap_err();
        bucket.unhook();
        assert_eq!(bucket.collected(), before, "{parts:?}");
        // A lock that could not be written is released, or its life ends.
        bucket.advance(Duration::from_secs(601));
        assert_eq!(
            collect(&bucket, HOUR).unwrap().deleted.closures,
            1,
            "{parts:?}"
        );
        assert_eq!(read_all(&bucket), ["one"]);
    }
}

#[test]
fn a_sweep_that_may_not_delete_explains_it_and_a_later_one_continues() {
    let bucket = with_garbage();
    collect(&bucket, HOUR).unwrap();
    bucket.advance(HOUR);
    // The closure goes; then the right is taken away.
    let mut deletions = 0;
    bucket.hook(move |request| {
        deletions += usize::from(request.starts_with("POST "));
        (deletions > 1 && request.starts_with("POST ")).then_some(403)
    });
    let error = collect(&bucket, HOUR).unwrap_err().to_string();
    assert!(error.contains("s3:DeleteObject"), "{error}");
    bucket.unhook();
    assert!(!bucket.collected().contains(&closure_of(2)));
    assert_eq!(read_all(&bucket), ["one"]);
    // The list was not lost, nor its age.
    let swept = collect(&bucket, HOUR).unwrap();
    assert_eq!((swept.deleted.closures, swept.deleted.blobs), (0, 6));
    let left: BTreeSet<_> = bucket.collected().into_iter().collect();
    assert_eq!(left, objects_of(1));
}

#[test]
fn the_lock_of_a_process_that_died_while_it_deleted_ends_and_additions_notice() {
    let bucket = with_garbage();
    collect(&bucket, HOUR).unwrap();
    // An addition begins before it.
    let store = open(&bucket);
    let (ingest, blobs) = (store.ingest().unwrap(), blobs(2));
    put_blobs(&*ingest, &blobs);
    bucket.advance(HOUR);
    // As if it was killed: nothing more is written.
    let mut is_dead = false;
    bucket.hook(move |request| {
        let was_dead = is_dead;
        is_dead |= request.starts_with("POST ");
        (was_dead && !request.starts_with("GET ")).then_some(400)
    });
    collect(&bucket, HOUR).unwrap_err();
    bucket.unhook();
    assert!(bucket.objects().contains_key("castore-fs/gc/lock"));
    let error = collect(&bucket, HOUR).unwrap_err().to_string();
    assert!(error.contains("another garbage collection"), "{error}");
    bucket.advance(Duration::from_secs(601));
    // It may have deleted what the addition put, as far as that can know.
    let lost = Digest::of(&blobs[0]).to_hex();
    bucket.remove(&format!("blobs/b3/{}/{lost}", &lost[..4]));
    let error = commit_tree(ingest, "again", &blobs)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a garbage collection deleted them"),
        "{error}"
    );
    add(&store, "again", 2);
    assert_eq!(collect(&bucket, HOUR).unwrap().deleted.blobs, 0);
    assert_eq!(read_all(&bucket), ["again", "one"]);
}

#[test]
fn a_listing_that_repeats_itself_ends_a_collection() {
    let bucket = with_garbage();
    bucket.repeat_pages("chunks");
    bucket.take_requests();
    let error = collect(&bucket, HOUR).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
    let requests = bucket.take_requests();
    assert!(requests.len() < 60, "{}", requests.len());
}

#[test]
fn one_collection_runs_at_a_time() {
    let bucket = with_garbage();
    let shared = std::sync::Arc::new(bucket);
    let other = shared.clone();
    let mut is_first = true;
    shared.hook(move |request| {
        if std::mem::take(&mut is_first) && request.contains("list-type=2") {
            let error = collect(&other, HOUR).unwrap_err().to_string();
            assert!(error.contains("another garbage collection"), "{error}");
        } else if !request.contains("list-type=2") {
            is_first = true;
        }
        None
    });
    collect(&shared, HOUR).unwrap();
    shared.unhook();
}

#[test]
fn a_list_that_cannot_be_read_stops_collections_and_additions() {
    let bucket = with_garbage();
    collect(&bucket, HOUR).unwrap();
    let path = "castore-fs/gc/candidates";
    let list = bucket.objects()[path].bytes.clone();
    let newer = [b"castore-fs gc 2\n", &list[16..]].concat();
    let mut damaged = list.clone();
    damaged[100] ^= 1;
    bucket.advance(HOUR);
    let before = bucket.collected();
    for bytes in [newer, damaged, Vec::new()] {
        bucket.put(path, &bytes);
        let error = collect(&bucket, HOUR).unwrap_err().to_string();
        assert!(
            error.contains(path) && error.contains("newest castore-fs"),
            "{error}"
        );
        let ingest = open(&bucket).ingest().unwrap();
        let error = ingest.put_blobs(&[(Digest::of(b"x"), b"x")]).unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
    }
    assert_eq!(bucket.collected(), before);
    bucket.remove(path);
    collect(&bucket, HOUR).unwrap();
    assert_eq!(read_all(&bucket), ["one"]);
}
