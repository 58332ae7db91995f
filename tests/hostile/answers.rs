//! A gRPC server whose answers are hostile below the messages: headers and trailers without end, answers
//! that are compressed though the client takes none, frames of nothing.
//!
//! Each client is a process of its own, whose memory and output are measured.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use castore_fs::castore::Digest;

use super::floods::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, flate, frame, literals,
};

/// Longer than the deadlines of a client by far.
const HANGS: Duration = Duration::from_secs(60);
/// Resident bytes that a client may take; most of them are its program.
const MOST_MEMORY: i64 = 72 << 20;
/// Bytes that it may print.
const MOST_REPORTED: usize = 4 << 10;
const ACK: u8 = 1;

/// What unpacks to 16 MiB.
static PACKED: LazyLock<Vec<u8>> = LazyLock::new(|| flate(&vec![0; 16 << 20]));

/// How a call is answered.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// Headers without an end.
    Headers,
    /// Trailers without an end.
    Trailers,
    /// Trailers that name a long header, which they have once, ten thousand times.
    Table,
    /// A status with a message of a mebibyte.
    Message,
    /// One interim answer (1xx) after the other.
    Interim,
    /// Frames of no bytes.
    Nothing,
    /// Pings, none of whose answers is read.
    Pings,
    /// A message that unpacks to 16 MiB, in gzip, which is named or not.
    Gzip { named: bool },
}

/// The begin of an answer.
fn head(encoding: Option<&str>) -> Vec<u8> {
    let usual = [(":status", "200"), ("content-type", "application/grpc")];
    let encoding = encoding.map(|name| ("grpc-encoding", name));
    literals(&usual.into_iter().chain(encoding).collect::<Vec<_>>())
}

/// A header with a value of `length` bytes (RFC 7541, 6.2), which is kept in the table or not.
fn long(name: &str, length: usize, kept: bool) -> Vec<u8> {
    let mut bytes = vec![if kept { 0x40 } else { 0 }, name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        bytes.push((rest & 127) as u8 | 128);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes.resize(bytes.len() + length, b'v');
    bytes
}

/// Headers of a stream, in frames as long as may be.
fn block(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let mut buffers = block.chunks(16 << 10).peekable();
    let (mut frames, mut kind) = (Vec::new(), HEADERS);
    while let Some(buffer) = buffers.next() {
        let last = if buffers.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        let flags = last | if kind == HEADERS { flags } else { 0 };
        frames.extend(frame(kind, flags, stream, buffer));
        kind = CONTINUATION;
    }
    frames
}

/// Writes `bytes` for as long as they are read.
fn without_end(connection: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let started = Instant::now();
    while started.elapsed() < HANGS {
        connection.write_all(bytes)?;
    }
    Ok(())
}

fn attack(connection: &mut TcpStream, stream: u32, attack: Attack) -> std::io::Result<()> {
    let begun = frame(HEADERS, END_HEADERS, stream, &head(None));
    let junk = literals(&[("x-junk", &"v".repeat(100))]).repeat(100);
    let status = literals(&[("grpc-status", "13")]);
    match attack {
        Attack::Headers => {
            connection.write_all(&frame(HEADERS, 0, stream, &head(None)))?;
            without_end(connection, &frame(CONTINUATION, 0, stream, &junk))
        }
        Attack::Trailers => {
            connection.write_all(&begun)?;
            connection.write_all(&frame(HEADERS, END_STREAM, stream, &junk))?;
            without_end(connection, &frame(CONTINUATION, 0, stream, &junk))
        }
        Attack::Table => {
            connection.write_all(&begun)?;
            let names = [&status[..], &long("x", 4000, true), &[0x80 | 62; 10_000]].concat();
            connection.write_all(&block(stream, END_STREAM, &names))
        }
        Attack::Message => {
            let message = [&status[..], &long("grpc-message", 1 << 20, false)].concat();
            let all = [head(None), message].concat();
            connection.write_all(&block(stream, END_STREAM, &all))
        }
        Attack::Interim => {
            let interim = literals(&[(":status", "103"), ("link", &"v".repeat(100))]);
            without_end(
                connection,
                &frame(HEADERS, END_HEADERS, stream, &interim).repeat(100),
            )
        }
        Attack::Nothing => {
            connection.write_all(&begun)?;
            without_end(connection, &frame(DATA, 0, stream, &[]).repeat(1000))
        }
        Attack::Pings => {
            connection.write_all(&begun)?;
            without_end(connection, &frame(PING, 0, 0, &[7; 8]).repeat(1000))
        }
        Attack::Gzip { named } => {
            let begun = head(named.then_some("gzip"));
            connection.write_all(&frame(HEADERS, END_HEADERS, stream, &begun))?;
            let packed = &*PACKED;
            let message = [&[1][..], &(packed.len() as u32).to_be_bytes(), packed].concat();
            for buffer in message.chunks(16 << 10) {
                connection.write_all(&frame(DATA, 0, stream, buffer))?;
            }
            let status = literals(&[("grpc-status", "0")]);
            connection.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &status))
        }
    }
}

/// Answers every call on a connection with `wanted`.
fn serve(mut connection: TcpStream, wanted: Attack) -> std::io::Result<()> {
    connection.read_exact(&mut [0; 24])?;
    connection.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        connection.read_exact(&mut vec![0; length as usize])?;
        match head[3] {
            SETTINGS if head[4] & ACK == 0 => {
                connection.write_all(&frame(SETTINGS, ACK, 0, &[]))?;
            }
            HEADERS => attack(&mut connection, stream, wanted)?,
            _ => {}
        }
    }
}

/// How a client ended.
struct Outcome {
    code: Option<i32>,
    reported: String,
    /// The most that it had, in bytes.
    memory: i64,
}

/// Runs `castore-fs cat` of a blob against a server that answers so.
fn client_of(wanted: Attack) -> Outcome {
    // Before the client's deadline begins.
    LazyLock::force(&PACKED);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let connection = connection.unwrap();
            std::thread::spawn(move || serve(connection, wanted).ok());
        }
    });
    let store = format!("grpc+http://{address}?first-byte-timeout=3&stall-timeout=3");
    let mut child = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(["cat", "--store", &store, &Digest::of(b"blob").to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reported = child.stderr.take().unwrap();
    let reported = std::thread::spawn(move || {
        let mut text = Vec::new();
        reported.read_to_end(&mut text).map(|_| text)
    });
    let started = Instant::now();
    let status = format!("/proc/{}/status", child.id());
    let mut memory = 0;
    loop {
        // Not that of wait4(2), which counts what the parent had when it made the process.
        memory = memory.max(peak(&status).unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            let reported = reported.join().unwrap().unwrap();
            let reported = String::from_utf8_lossy(&reported).into_owned();
            assert!(memory > 0, "the process was not seen");
            return Outcome {
                code: status.code(),
                reported,
                memory,
            };
        }
        if started.elapsed() > HANGS {
            // The next look finds that it has ended by that.
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The most memory that the process of this file `status` has had, in bytes; nothing once it has ended.
fn peak(status: &str) -> Option<i64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[test]
fn answers_that_are_hostile_below_their_messages_end_in_bounded_memory_and_words() {
    let mut wrong = Vec::new();
    for wanted in [
        Attack::Headers,
        Attack::Trailers,
        Attack::Table,
        Attack::Message,
        Attack::Interim,
        Attack::Nothing,
        Attack::Pings,
        Attack::Gzip { named: true },
        Attack::Gzip { named: false },
    ] {
        let Outcome {
            code,
            reported,
            memory,
        } = client_of(wanted);
        let (bytes, mebibytes) = (reported.len(), memory >> 20);
        eprintln!("{wanted:?}: {code:?}, {mebibytes} MiB; {reported:.300}");
        let is_late = matches!(wanted, Attack::Gzip { .. }) && !reported.contains("ompress");
        if is_late || code != Some(1) || bytes > MOST_REPORTED || memory > MOST_MEMORY {
            wrong.push(format!(
                "{wanted:?}: {code:?}, {bytes} bytes, {mebibytes} MiB"
            ));
        }
    }
    assert_eq!(wrong, [""; 0]);
}
