use proptest::collection::vec;
use proptest::prelude::*;

use super::similarity::{RootSimilarity, similarity};
use super::*;

fn profile_key(text: &str) -> ProfileKey {
    ProfileKey::new(text.as_bytes()).unwrap()
}

fn recorded(name: &str, touches: &[(&str, u32)]) -> ProfileRecording {
    let mut recording = ProfileRecording::new(profile_key(name), Digest::of(name.as_bytes()));
    for (path, extent) in touches {
        recording.record(path.as_bytes(), *extent);
    }
    recording
}

fn order(profile: &Profile) -> Vec<(String, u32, u32)> {
    let path = |run: &ExtentRun| {
        let path = &profile.files()[run.file as usize].path;
        String::from_utf8(path.to_vec()).unwrap()
    };
    let runs = profile.runs().iter();
    runs.map(|run| (path(run), run.first, run.count)).collect()
}

fn owned(order: &[(&str, u32, u32)]) -> Vec<(String, u32, u32)> {
    let owned = order.iter();
    owned
        .map(|(path, first, count)| ((*path).to_owned(), *first, *count))
        .collect()
}

#[test]
fn accesses_stay_in_their_order_and_those_in_a_row_are_one_run() {
    let touches = [
        ("b", 0),
        ("a/x", 0),
        ("b", 3),
        ("b", 4),
        ("b", 0),
        ("a/x", 1),
    ];
    let recording = recorded("r", &touches);
    let expected = [("b", 0, 1), ("a/x", 0, 1), ("b", 3, 2), ("a/x", 1, 1)];
    assert_eq!(order(recording.profile()), owned(&expected));
}

#[test]
fn the_last_start_comes_first_and_what_is_not_read_again_is_removed() {
    let mut profile = recorded("r", &[("a", 0), ("b", 0), ("c", 0), ("c", 1)])
        .profile()
        .clone();
    // An incomplete recording removes nothing.
    for _ in 0..10 {
        profile = recorded("r", &[("c", 0)]).follow(&profile, false);
    }
    let expected = [("c", 0, 1), ("a", 0, 1), ("b", 0, 1), ("c", 1, 1)];
    assert_eq!(order(&profile), owned(&expected));
    for whole in 1..MOST_MISSED {
        profile = recorded("r", &[("c", 0), ("d", 0)]).follow(&profile, true);
        assert_eq!(profile.files()[2].missed, whole);
    }
    let expected = [("c", 0, 1), ("d", 0, 1), ("a", 0, 1), ("b", 0, 1)];
    assert_eq!(order(&profile), owned(&expected));
    // Read once more, it starts again.
    profile = recorded("r", &[("b", 0), ("c", 0), ("d", 0)]).follow(&profile, true);
    assert_eq!(
        order(&profile),
        owned(&[("b", 0, 1), ("c", 0, 1), ("d", 0, 1)])
    );
    assert!(profile.files().iter().all(|file| file.missed == 0));
}

#[test]
fn a_recording_is_bounded() {
    let mut recording = recorded("r", &[]);
    for file in 0..MOST_FILES {
        assert!(recording.record(format!("file-{file}").as_bytes(), 0));
    }
    assert!(!recording.is_full() && !recording.record(b"one/more", 0));
    assert!(recording.is_full());
    let mut recording = recorded("r", &[]);
    for extent in 0..MOST_EXTENTS as u32 {
        assert!(recording.record(b"large", extent));
    }
    assert!(!recording.record(b"large", u32::MAX - 1) && recording.is_full());
    assert_eq!(order(recording.profile()).len(), 1);
    // The largest that there can be is still one.
    let mut recording = recorded("r", &[]);
    let long = "x".repeat(250);
    let mut file = 0;
    while recording.record(format!("{file}/{long}").as_bytes(), u32::MAX - 1 - file) {
        file += 1;
    }
    let bytes = recording.profile().encode();
    assert!(Profile::decode(&bytes).as_ref() == Ok(recording.profile()));
}

#[test]
fn versions_of_one_package_are_similar() {
    let hash = |letter: &str| letter.repeat(32);
    let (a, b) = (hash("a"), hash("b"));
    let like = |one: String, other: String| similarity(&profile_key(&one), &profile_key(&other));
    for (one, other, expected) in [
        (
            format!("{a}-hello-2.12"),
            format!("{b}-hello-2.12.1"),
            Some(RootSimilarity::Version),
        ),
        (
            format!("{a}-hello-2.12"),
            format!("{b}-hello-2.12"),
            Some(RootSimilarity::Hash),
        ),
        (
            format!("{a}-hello"),
            format!("{b}-hello-1"),
            Some(RootSimilarity::Version),
        ),
        (format!("{a}-hello-wayland-1"), format!("{b}-hello-2"), None),
        (
            format!("{a}-hello-1/bin"),
            format!("{b}-hello-2/bin"),
            Some(RootSimilarity::Version),
        ),
        (format!("{a}-hello-1/bin"), format!("{b}-hello-2/lib"), None),
        (
            "app-41".into(),
            "app-42".into(),
            Some(RootSimilarity::Version),
        ),
        ("app-41".into(), "application-41".into(), None),
        ("tree".into(), "tree".into(), Some(RootSimilarity::Same)),
        ("tree".into(), "bush".into(), None),
        ("b3:00".into(), "b3:01".into(), None),
        ("blake3-0a".into(), "blake3-1a".into(), None),
        ("0".repeat(64), format!("{}1", "0".repeat(63)), None),
    ] {
        assert_eq!(like(one.clone(), other.clone()), expected, "{one} {other}");
    }
}

#[test]
fn a_subject_is_what_a_mount_calls_it() {
    assert_eq!(profile_key("/nix/store/x-y/"), profile_key("x-y"));
    assert_eq!(profile_key("/tree/share"), profile_key("tree/share"));
    assert_eq!(ProfileKey::new(b"//"), None);
    assert_eq!(ProfileKey::new(b"a\0b"), None);
}

#[test]
fn bytes_that_are_no_profile_are_refused() {
    let good = recorded("r", &[("a/b", 0), ("a/c", 7)]).profile().encode();
    assert!(Profile::decode(&good).is_ok());
    assert_eq!(Profile::decode(b"#!/bin/sh"), Err(FormatError::NotAProfile));
    assert_eq!(Profile::decode(&good[..30]), Err(FormatError::Damaged));
    let mut newer = good.clone();
    newer[16] = 2;
    assert_eq!(Profile::decode(&newer), Err(FormatError::Version(2)));
    let long = vec![0; codec_limit() + 1];
    assert_eq!(Profile::decode(&long), Err(FormatError::TooLong));
    for at in 20..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        assert_eq!(Profile::decode(&flipped), Err(FormatError::Damaged), "{at}");
    }
}

fn codec_limit() -> usize {
    codec::MOST_BYTES as usize
}

/// A body with the header that belongs to it.
fn headed(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"castore-profile\n\x01\0\0\0".to_vec();
    bytes.extend_from_slice(Digest::of(body).as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn an_encoding_that_the_encoder_does_not_write_is_refused() {
    let root = [&[1, b'r'], &[0; 32][..]].concat();
    let body = |rest: &[u8]| headed(&[&root[..], rest].concat());
    let file = |name: u8| [0, 1, name, 0];
    let one = [&[1][..], &file(b'a')].concat();
    assert!(Profile::decode(&body(&[0, 0])).is_ok());
    assert!(Profile::decode(&body(&[&one[..], &[1, 0, 0, 1]].concat())).is_ok());
    for (rest, why) in [
        (vec![0], "it ends early"),
        (vec![0, 0, 0], "something follows"),
        (vec![0x80, 0, 0], "it can be written shorter"),
        ([&one[..], &[0]].concat(), "it can be written shorter"),
        ([&one[..], &[1, 1, 0, 1]].concat(), "a run is of no file"),
        (
            [&one[..], &[2, 0, 0, 1, 0, 0, 1]].concat(),
            "a file's path or an extent",
        ),
        (
            [&one[..], &[2, 0, 0, 1, 0, 1, 1]].concat(),
            "it can be written shorter",
        ),
        (
            [&one[..], &[1, 0, 0, 0x80, 0x80, 0x80, 0x01]].concat(),
            "it has too many extents",
        ),
        (
            [&one[..], &[1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 1]].concat(),
            "a run never ends",
        ),
        (
            [&[1][..], &file(b'/'), &[1, 0, 0, 1]].concat(),
            "a file's path",
        ),
        (
            vec![0xff, 0xff, 0xff, 0xff, 0x0f],
            "it names too many files",
        ),
        (vec![0xff, 0xff, 0xff, 0xff, 0xff], "a number is too long"),
        (vec![1, 1, 1, b'a', 0], "a path repeats more than there is"),
    ] {
        let error = Profile::decode(&body(&rest)).unwrap_err().to_string();
        assert!(error.contains(why), "{rest:?}: {error}, not {why}");
    }
}

fn any_recording() -> impl Strategy<Value = ProfileRecording> {
    let path = prop_oneof![
        "[a-c]{1,2}(/[a-c]{1,2}){0,3}".prop_map(String::into_bytes),
        Just(Vec::new()),
        vec(1..=255u8, 1..20),
    ];
    let touch = (path, prop_oneof![0..4u32, any::<u32>()]);
    ("[a-z0-9/%~.-]{1,20}", vec(touch, 0..60)).prop_filter_map(
        "a profile key",
        |(name, touches)| {
            let profile_key = ProfileKey::new(name.as_bytes())?;
            let mut recording = ProfileRecording::new(profile_key, Digest::of(name.as_bytes()));
            for (path, extent) in touches {
                recording.record(&path, extent);
            }
            Some(recording)
        },
    )
}

proptest! {
    #[test]
    fn a_profile_comes_back_from_its_bytes(recording in any_recording(), before in any_recording()) {
        for profile in [recording.profile().clone(), recording.follow(before.profile(), true)] {
            prop_assert_eq!(Profile::decode(&profile.encode()), Ok(profile));
        }
    }

    /// Whatever is accepted is what our encoder writes.
    #[test]
    fn any_bytes_are_read_or_refused(body in vec(prop_oneof![0..4u8, any::<u8>()], 0..200)) {
        let root = [&[1, b'r'], &[0; 32][..], &body].concat();
        for bytes in [headed(&body), headed(&root), body] {
            if let Ok(profile) = Profile::decode(&bytes) {
                prop_assert_eq!(profile.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_spoiled_profile_is_refused(recording in any_recording(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = recording.profile().encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Profile::decode(&bytes).is_err());
        prop_assert!(Profile::decode(&bytes[..at]).is_err());
    }

    #[test]
    fn a_directory_returns_what_was_put(recording in any_recording()) {
        let dir = tempfile::tempdir().unwrap();
        let profiles = Profiles::new(dir.path().join("profiles"));
        let profile = recording.profile();
        prop_assert!(profiles.find(profile.profile_key()).unwrap().is_none());
        profiles.put(profile).unwrap();
        let found = profiles.find(profile.profile_key()).unwrap().unwrap();
        prop_assert!(found.own);
        prop_assert_eq!(&found.profile, profile);
        let (good, bad) = profiles.list().unwrap();
        prop_assert_eq!(good, vec![ProfileSummary::of(profile)]);
        prop_assert!(bad.is_empty());
        profiles.remove(profile.profile_key()).unwrap();
        prop_assert!(profiles.remove(profile.profile_key()).is_err());
    }
}

#[test]
fn what_is_most_similar_is_found_and_what_is_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let profiles = Profiles::new(dir.path().to_owned());
    let long = "very-long/".repeat(40);
    let (a, b) = ("a".repeat(32), "b".repeat(32));
    let names = [
        "tree",
        &format!("{a}-hello-1"),
        &format!("{a}-hello-2"),
        &long,
    ];
    for name in names {
        profiles
            .put(recorded(name, &[(name, 0)]).profile())
            .unwrap();
        let found = profiles.find(&profile_key(name)).unwrap().unwrap();
        assert!(found.own && *found.profile.profile_key() == profile_key(name));
    }
    let found = |name: &str| {
        let found = profiles.find(&profile_key(name)).unwrap();
        found.map(|found| (found.profile.profile_key().to_string(), found.own))
    };
    assert_eq!(
        found(&format!("{b}-hello-1")),
        Some((format!("{a}-hello-1"), false))
    );
    assert_eq!(
        found(&format!("{b}-hello-3")),
        Some((format!("{a}-hello-2"), false))
    );
    assert_eq!(found("bush"), None);
    assert_eq!(profiles.list().unwrap().0.len(), names.len());

    let path = dir.path().join("tree.profile");
    std::fs::write(&path, "not a profile at all").unwrap();
    let error = profiles.find(&profile_key("tree")).unwrap_err().to_string();
    let reports = format!("the profile {}: it does not begin as", path.display());
    assert!(error.starts_with(&reports), "{error}");
    assert_eq!(profiles.list().unwrap().1.len(), 1);
    // The next recording replaces it.
    profiles
        .save(&recorded("tree", &[("x", 0)]), false)
        .unwrap();
    assert_eq!(found("tree"), Some(("tree".to_owned(), true)));
    std::fs::rename(&path, dir.path().join("bush.profile")).unwrap();
    let error = profiles.find(&profile_key("bush")).unwrap_err().to_string();
    assert!(
        error.contains("it contains the profile of \"tree\""),
        "{error}"
    );
}

#[test]
fn what_is_saved_comes_before_what_was_known() {
    let dir = tempfile::tempdir().unwrap();
    let profiles = Profiles::new(dir.path().to_owned());
    profiles
        .save(&recorded("r", &[("a", 0), ("b", 0)]), false)
        .unwrap();
    profiles
        .save(&recorded("r", &[("c", 0), ("b", 0)]), false)
        .unwrap();
    let known = profiles.load(&profile_key("r")).unwrap().unwrap();
    assert_eq!(
        order(&known),
        owned(&[("c", 0, 1), ("b", 0, 1), ("a", 0, 1)])
    );
}

/// What the fuzzer starts with is a profile.
#[test]
fn the_seed_of_the_fuzzer_is_read() {
    let seed = include_bytes!("../../fuzz/seeds/profile/two-files");
    let profile = Profile::decode(&headed(seed)).unwrap();
    let expected = [("bin/a", 0, 1), ("bin/b", 5, 2), ("bin/a", 1, 1)];
    assert_eq!(order(&profile), owned(&expected));
}
