use std::io::Write;

use super::*;

/// `bytes`, compressed as one member, stream or frame.
fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match compression {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::best());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap();
        }
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(&mut out, 6);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap();
        }
        Compression::Zstd => out = zstd::encode_all(bytes, 3).unwrap(),
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(&mut out, bzip2::Compression::best());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap();
        }
        Compression::Brotli => unreachable!("there is no encoder for it here"),
    }
    out
}

const RECOGNISED: [Compression; 4] = [
    Compression::Gzip,
    Compression::Xz,
    Compression::Zstd,
    Compression::Bzip2,
];

fn decoded(bytes: &[u8], limits: DecompressionLimits) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    Decoder::detect(bytes, limits)?.read_to_end(&mut out)?;
    Ok(out)
}

fn error(bytes: &[u8], limits: DecompressionLimits) -> DecompressionError {
    let error = decoded(bytes, limits).unwrap_err();
    let inner = error.into_inner().expect("an error of the decoder");
    *inner.downcast().expect("an error of this module")
}

/// Text that compresses, and some that does not.
fn sample() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let noise = std::iter::repeat_with(|| random.u8(..)).take(100_000);
    let words = b"as it was in the beginning ".iter().copied().cycle();
    noise.chain(words.take(300_000)).collect()
}

#[test]
fn every_format_is_recognised_and_decompressed() {
    let sample = sample();
    for compression in RECOGNISED {
        let bytes = compressed(compression, &sample);
        let decoder = Decoder::detect(&bytes[..], DecompressionLimits::default()).unwrap();
        assert_eq!(decoder.compression(), Some(compression));
        assert!(decoded(&bytes, DecompressionLimits::default()).unwrap() == sample);
        assert_eq!(
            Compression::from_name(compression.name()),
            Some(compression)
        );
        let empty = compressed(compression, b"");
        assert_eq!(
            decoded(&empty, DecompressionLimits::default()).unwrap(),
            b"",
            "{compression:?}"
        );
    }
}

#[test]
fn brotli_is_known_by_its_name() {
    let hello = b"\x0b\x02\x80hello\x03";
    let read = |bytes: &[u8]| {
        let compression = Compression::from_name("br");
        let mut out = String::new();
        Decoder::new(bytes, compression, DecompressionLimits::default())?
            .read_to_string(&mut out)?;
        io::Result::Ok(out)
    };
    assert_eq!(read(hello).unwrap(), "hello");
    let error = read(&hello[..5]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
}

#[test]
fn what_is_not_compressed_goes_through() {
    for bytes in [
        &b""[..],
        b"a",
        b"\x1f\x8b",
        b"BZh9.txt is the first file of a tar archive",
        b"\x0d\0\0\0\0\0\0\0nix-archive-1",
    ] {
        assert_eq!(
            decoded(bytes, DecompressionLimits::default()).unwrap(),
            bytes
        );
    }
}

#[test]
fn members_streams_and_frames_in_a_row_are_one_input() {
    for compression in RECOGNISED {
        let mut bytes = compressed(compression, b"one ");
        bytes.extend(compressed(compression, b""));
        bytes.extend(compressed(compression, b"two"));
        assert_eq!(
            decoded(&bytes, DecompressionLimits::default()).unwrap(),
            b"one two"
        );
        // One byte at a time, as a pipe can give them.
        struct Trickle<'a>(&'a [u8]);
        impl Read for Trickle<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = buffer.len().min(1);
                self.0.read(&mut buffer[..length])
            }
        }
        let mut out = Vec::new();
        let mut decoder = Decoder::detect(Trickle(&bytes), DecompressionLimits::default()).unwrap();
        decoder.read_to_end(&mut out).unwrap();
        assert_eq!(out, b"one two", "{compression:?}");
    }
    let skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip";
    let seekable = [&skippable[..], &compressed(Compression::Zstd, b"data")].concat();
    assert_eq!(
        decoded(&seekable, DecompressionLimits::default()).unwrap(),
        b"data"
    );
}

#[test]
fn zeros_after_the_end_are_padding_and_other_bytes_are_not() {
    for compression in [Compression::Gzip, Compression::Bzip2, Compression::Xz] {
        let mut bytes = compressed(compression, b"data");
        bytes.extend([0; 1024]);
        assert_eq!(
            decoded(&bytes, DecompressionLimits::default()).unwrap(),
            b"data"
        );
    }
    for compression in RECOGNISED {
        let mut bytes = compressed(compression, b"data");
        bytes.extend(b"garbage");
        match error(&bytes, DecompressionLimits::default()) {
            DecompressionError::Trailing { .. } | DecompressionError::Damaged { .. } => {}
            // To xz, seven bytes are the beginning of another stream.
            DecompressionError::Truncated {
                compression: Compression::Xz,
            } => {}
            other => panic!("{compression:?}: {other}"),
        }
    }
}

#[test]
fn a_cut_or_damaged_stream_is_an_error_wherever_it_is() {
    let sample = sample();
    for compression in RECOGNISED {
        let bytes = compressed(compression, &sample);
        for part in 1..16 {
            let cut = &bytes[..SIGNATURE.max(bytes.len() * part / 16)];
            let error = error(cut, DecompressionLimits::default());
            assert!(
                matches!(error, DecompressionError::Truncated { .. }),
                "{compression:?} {part}: {error}"
            );
        }
        let cut = &bytes[..bytes.len() - 1];
        assert!(decoded(cut, DecompressionLimits::default()).is_err());
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 8] ^= 0x10;
        // zstd without a checksum may not notice by itself; what it gives is then of another length
        // or content, which is for the caller's hash to notice.
        if compression != Compression::Zstd {
            assert!(
                decoded(&flipped, DecompressionLimits::default()).is_err(),
                "{compression:?}"
            );
        }
    }
}

#[test]
fn bombs_are_stopped_at_the_limit() {
    let zeros = vec![0; 4 << 20];
    for compression in RECOGNISED {
        let bytes = compressed(compression, &zeros);
        let limits = DecompressionLimits {
            output: 1 << 20,
            ratio: 10,
            ..DecompressionLimits::default()
        };
        let mut produced = 0;
        let mut decoder = Decoder::detect(&bytes[..], limits).unwrap();
        let mut buffer = vec![0; 10_000];
        let error = loop {
            match decoder.read(&mut buffer) {
                Ok(0) => panic!("{compression:?}: nothing stopped it"),
                Ok(read) => produced += read,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
        assert!(produced <= 1 << 20, "{produced}");
        // As much as there is, is enough.
        assert!(decoded(&bytes, DecompressionLimits::of_output(4 << 20)).is_ok());
        assert!(decoded(&bytes, DecompressionLimits::of_output((4 << 20) - 1)).is_err());
    }
}

#[test]
fn a_window_beyond_the_memory_limit_is_refused() {
    let limits = DecompressionLimits {
        memory: 1 << 20,
        ..DecompressionLimits::default()
    };
    // A dictionary of 8 MiB.
    let xz = compressed(Compression::Xz, b"data");
    assert!(matches!(
        error(&xz, limits),
        DecompressionError::Memory { .. }
    ));
    let mut zstd = zstd::Encoder::new(Vec::new(), 3).unwrap();
    zstd.long_distance_matching(true).unwrap();
    zstd.window_log(27).unwrap();
    zstd.write_all(&sample()).unwrap();
    let zstd = zstd.finish().unwrap();
    assert!(matches!(
        error(&zstd, limits),
        DecompressionError::Memory { .. }
    ));
    assert!(decoded(&zstd, DecompressionLimits::default()).is_ok());
}

#[test]
fn known_formats_that_are_not_supported_are_named() {
    let error = error(b"PK\x03\x04 and so on", DecompressionLimits::default());
    assert_eq!(
        error.to_string(),
        "the input is in zip format, which is not supported; unpack it first (unzip)"
    );
}

#[test]
fn an_error_of_the_input_stays_what_it_is() {
    struct BrokenReader(Vec<u8>);
    impl Read for BrokenReader {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::from_raw_os_error(5));
            }
            let length = buffer.len().min(self.0.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0.drain(..length);
            Ok(length)
        }
    }
    for compression in RECOGNISED {
        let bytes = compressed(compression, &sample())[..1000].to_vec();
        let mut decoder =
            Decoder::detect(BrokenReader(bytes), DecompressionLimits::default()).unwrap();
        let error = decoder.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{compression:?}: {error}");
    }
}
