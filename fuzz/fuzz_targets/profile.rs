//! Whatever the decoder of profiles accepts is what the encoder writes, and a recording continues from it.
#![no_main]

use castore_fs::castore::Digest;
use castore_fs::profile::{Profile, ProfileRecording};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The header's digest would keep everything else out.
    let mut bytes = b"castore-profile\n\x01\0\0\0".to_vec();
    bytes.extend_from_slice(Digest::of(data).as_bytes());
    bytes.extend_from_slice(data);
    let Ok(profile) = Profile::decode(&bytes) else {
        return;
    };
    assert_eq!(profile.encode(), bytes);
    let mut recording = ProfileRecording::new(profile.profile_key().clone(), *profile.digest());
    recording.record(b"bin/sh", 0);
    let next = recording.follow(&profile, data.len().is_multiple_of(2));
    assert_eq!(Profile::decode(&next.encode()).as_ref(), Ok(&next));
});
