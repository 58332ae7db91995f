//! The part of `benches/compare` that is timed inside a process: opens, reads and maps without the
//! cost of starting a program. Prints the seconds that the work took, and nothing else.
//!
//! `probe small DIR COUNT`: opens, reads to the end and closes COUNT files of up to 64 KiB.
//! `probe sequential FILE`: reads the file in calls of 1 MiB.
//! `probe map FILE`: maps the file and touches every page, in order.
//! `probe random FILE COUNT`: reads COUNT times 4 KiB at places that are the same in every run.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Files up to this size count as small, in bytes.
const SMALL: u64 = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let taken = match words[..] {
        ["small", dir, count] => small(Path::new(dir), count.parse()?)?,
        ["sequential", file] => sequential(Path::new(file))?,
        ["map", file] => map(Path::new(file))?,
        ["random", file, count] => random(Path::new(file), count.parse()?)?,
        // `cargo bench` and `cargo test` start every bench target; this one is for the script.
        _ => {
            eprintln!("this is run by benches/compare");
            return Ok(());
        }
    };
    println!("{}", taken.as_secs_f64());
    Ok(())
}

fn small(dir: &Path, count: usize) -> Result<Duration, Box<dyn Error>> {
    let mut files = Vec::new();
    find_small(dir, count, &mut files)?;
    let mut buffer = vec![0; SMALL as usize + 1];
    let begin = Instant::now();
    for path in &files {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(begin.elapsed())
}

fn find_small(dir: &Path, count: usize, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if files.len() >= count {
            break;
        }
        let stat = entry.metadata()?;
        if stat.is_dir() {
            find_small(&entry.path(), count, files)?;
        } else if stat.is_file() && stat.len() <= SMALL {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn sequential(path: &Path) -> Result<Duration, Box<dyn Error>> {
    let mut buffer = vec![0; 1 << 20];
    let begin = Instant::now();
    let mut file = File::open(path)?;
    while file.read(&mut buffer)? > 0 {}
    Ok(begin.elapsed())
}

fn map(path: &Path) -> Result<Duration, Box<dyn Error>> {
    let begin = Instant::now();
    let file = File::open(path)?;
    let length = file.metadata()?.len() as usize;
    let mut sum = 0u64;
    // SAFETY: a private read-only mapping of a file that does not change while this runs; it is
    // read within its length and unmapped once.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        );
        if map == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let bytes = std::slice::from_raw_parts(map.cast::<u8>(), length);
        for at in (0..length).step_by(4096) {
            sum += u64::from(bytes[at]);
        }
        libc::munmap(map, length);
    }
    std::hint::black_box(sum);
    Ok(begin.elapsed())
}

fn random(path: &Path, count: u64) -> Result<Duration, Box<dyn Error>> {
    let begin = Instant::now();
    let file = File::open(path)?;
    let pages = (file.metadata()?.len() / 4096).max(1);
    let mut buffer = [0; 4096];
    let mut state = 0x2545_f491_4f6c_dd1du64;
    for _ in 0..count {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(&mut buffer, state % pages * 4096)?;
    }
    Ok(begin.elapsed())
}
