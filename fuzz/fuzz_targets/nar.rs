//! Whatever the NAR reader accepts, the writer writes again byte for byte.
#![no_main]

use castore_fs::nar::{NarError, NarEvent, NarReader, NarWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(again) = rewrite(data) {
        assert_eq!(again, data);
    }
});

fn rewrite(data: &[u8]) -> Result<Vec<u8>, NarError> {
    const FITS: &str = "what was read can be written";
    let mut reader = NarReader::new(data);
    let mut writer = NarWriter::new(Vec::new());
    while let Some(event) = reader.next()? {
        match event {
            NarEvent::Directory { name } => writer.directory(name.as_deref()).expect(FITS),
            NarEvent::EndDirectory => writer.end_directory().expect(FITS),
            NarEvent::Symlink { name, target } => {
                writer.symlink(name.as_deref(), &target).expect(FITS);
            }
            NarEvent::File {
                name,
                executable,
                mut contents,
            } => {
                let size = contents.size();
                writer.file(name.as_deref(), executable, size).expect(FITS);
                let mut buffer = [0; 100];
                loop {
                    let length = contents.read(&mut buffer)?;
                    if length == 0 {
                        break;
                    }
                    writer.contents(&buffer[..length]).expect(FITS);
                }
            }
        }
    }
    Ok(writer.finish().expect(FITS))
}
