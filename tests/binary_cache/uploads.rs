//! What `nix copy --to` does, by hand: NARs and narinfos put into a cache of ours.

use std::sync::Arc;
use std::time::Duration;

use castore_fs::nix::{ContentAddress, NarinfoFile, NixHash, StorePath, encode_base32};
use castore_fs::server::{AcceptedTokens, BinaryCacheOptions, ServerLimits, ServerOptions};
use castore_fs::store::{GcOptions, LocalStore, MemoryStore, Store};
use sha2::{Digest as _, Sha256};

use crate::served::{Kept, Served, options, tree};
use kit::model::{Model, directory, file};
use kit::written::{Upload, compress, nar, path, secret_key};

fn writable() -> ServerOptions {
    ServerOptions {
        writable: true,
        ..options()
    }
}

impl Kept {
    fn serve_writable(&self) -> Served {
        self.serve(ServerOptions {
            local: Some(self.store.clone()),
            ..writable()
        })
    }
}

/// `tree` as a client uploads it as `path`.
fn upload_of(kept: &Kept, path: &StorePath, tree: &Model, compression: &str) -> Upload {
    Upload::new(path, &nar(tree, &kept.runtime), compression)
}

#[test]
fn a_path_comes_by_its_nar_and_then_its_narinfo_whatever_the_compression() {
    let kept = Kept::new();
    let served = kept.serve_writable();
    for (digit, compression) in ('0'..).zip(["none", "xz", "zstd", "bzip2", "gzip"]) {
        let path = path(digit, compression);
        let upload = upload_of(&kept, &path, &tree(), compression);
        assert!(!upload.has_nar(&served));
        let early = upload.put_narinfo(&served);
        assert_eq!(early.status, 409, "{early:?}");
        assert_eq!(upload.put_nar(&served).status, 201);
        assert!(upload.has_nar(&served));
        let at = format!("/{}.narinfo", path.hash());
        assert_eq!(served.get(&at).status, 404);
        assert_eq!(upload.put_narinfo(&served).status, 201);
        let there = served.narinfo(&path);
        assert_eq!(there.nar, upload.narinfo.nar);
        assert_eq!(there.references, [path]);
        let got = served.get(&format!("/{}", there.url));
        assert_eq!(got.body, nar(&tree(), &kept.runtime));
        // Once more changes nothing.
        assert_eq!(upload.put_narinfo(&served).status, 201);
    }
    // All of them have the same contents.
    assert_eq!(kept.store.usage().unwrap().unwrap().directories, 2);
}

#[test]
fn a_nar_waits_for_its_narinfo_over_restarts_and_collections() {
    let kept = Kept::new();
    let path = path('1', "top");
    let upload = upload_of(&kept, &path, &tree(), "zstd");
    let served = kept.serve_writable();
    assert_eq!(upload.put_nar(&served).status, 201);
    drop(served);
    let again = LocalStore::open(kept.store.dir()).unwrap();
    let collected = again.collect_garbage(&GcOptions {
        grace: Duration::ZERO,
        ..GcOptions::default()
    });
    assert_eq!(collected.unwrap().blobs, 0);
    let served = kept.serve_writable();
    assert!(upload.has_nar(&served));
    assert_eq!(upload.put_narinfo(&served).status, 201);
    assert_eq!(served.narinfo(&path).nar, upload.narinfo.nar);
}

#[test]
fn a_path_that_nothing_is_known_of_but_that_it_has_no_references_is_served_again() {
    let kept = Kept::new();
    let served = kept.serve_writable();
    let path = path('1', "leaf");
    let mut upload = upload_of(&kept, &path, &tree(), "none");
    upload.narinfo.references.clear();
    assert!(upload.narinfo.signatures.is_empty() && upload.narinfo.deriver.is_none());
    assert_eq!(upload.put_nar(&served).status, 201);
    assert_eq!(upload.put_narinfo(&served).status, 201);
    assert_eq!(served.narinfo(&path).references, []);
}

#[test]
fn claims_of_a_narinfo_are_compared_with_what_came() {
    let kept = Kept::new();
    let served = kept.serve_writable();
    let path = path('1', "top");
    let right = upload_of(&kept, &path, &tree(), "xz");
    assert_eq!(right.put_nar(&served).status, 201);
    let refused = |change: &dyn Fn(&mut NarinfoFile), why: &str| {
        let mut narinfo = right.narinfo.clone();
        change(&mut narinfo);
        let at = format!("/{}.narinfo", path.hash());
        let answer = served.send("PUT", &at, &[], narinfo.to_text().as_bytes());
        assert!((400..500).contains(&answer.status), "{answer:?}");
        assert!(answer.text().contains(why), "{}", answer.text());
    };
    refused(&|narinfo| narinfo.nar.size += 1, "bytes with the hash");
    refused(
        &|narinfo| narinfo.nar.sha256 = [1; 32],
        "bytes with the hash",
    );
    refused(&|narinfo| narinfo.file_size = Some(1), "FileSize");
    refused(
        &|narinfo| narinfo.file_hash = Some(NixHash::Sha256([1; 32])),
        "FileHash",
    );
    refused(
        &|narinfo| narinfo.url = "https://other/nar".to_owned(),
        "URL",
    );
    refused(
        &|narinfo| narinfo.path = kit::written::path('2', "other"),
        "is that of",
    );
    refused(
        &|narinfo| {
            let hash = NixHash::Sha256(narinfo.nar.sha256);
            narinfo.references.clear();
            let address = ContentAddress::parse(&format!("fixed:r:{hash}")).unwrap();
            narinfo.content_address = Some(address);
        },
        "content address",
    );
    let text = right.narinfo.to_text();
    for (wrong, why) in [
        (
            text.replace("References: ", "References: ../x "),
            "References",
        ),
        (text.replace("NarHash", "X"), "NarHash"),
        ("x".repeat(2 << 20), "at most"),
    ] {
        let at = format!("/{}.narinfo", path.hash());
        let answer = served.send("PUT", &at, &[], wrong.as_bytes());
        assert!((400..500).contains(&answer.status), "{answer:?}");
        assert!(answer.text().contains(why), "{}", answer.text());
    }
    assert_eq!(right.put_narinfo(&served).status, 201);
    // The name stays with its content.
    let mut other = upload_of(&kept, &path, &file("other"), "none");
    assert_eq!(other.put_nar(&served).status, 201);
    let answer = other.put_narinfo(&served);
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(served.narinfo(&path).nar, right.narinfo.nar);
    // Narinfos may come compressed.
    other.narinfo.path = kit::written::path('3', "third");
    let at = format!("/{}.narinfo", other.narinfo.path.hash());
    let body = compress(other.narinfo.to_text().as_bytes(), "zstd");
    let answer = served.send("PUT", &at, &[("Content-Encoding", "zstd")], &body);
    assert_eq!(answer.status, 201, "{answer:?}");
}

#[test]
fn a_path_comes_after_the_paths_that_it_refers_to() {
    let kept = Kept::new();
    let served = kept.serve_writable();
    let (dep, app) = (path('1', "dep"), path('2', "app"));
    let dep = upload_of(&kept, &dep, &file("dep"), "zstd");
    let mut upload = upload_of(&kept, &app, &file("app"), "zstd");
    upload.narinfo.references = vec![dep.narinfo.path.clone(), app.clone()];
    assert_eq!(upload.put_nar(&served).status, 201);
    // That the contents are here is not enough.
    assert_eq!(dep.put_nar(&served).status, 201);
    let refused = upload.put_narinfo(&served);
    assert_eq!(refused.status, 409, "{refused:?}");
    let why = format!(
        "it refers to {}, which is not in this store",
        dep.narinfo.path
    );
    assert!(refused.text().contains(&why), "{}", refused.text());
    let at = format!("/{}.narinfo", app.hash());
    assert_eq!(served.get(&at).status, 404);
    assert_eq!(dep.put_narinfo(&served).status, 201);
    assert_eq!(upload.put_narinfo(&served).status, 201);
    assert_eq!(served.narinfo(&app).references, upload.narinfo.references);
}

#[test]
fn what_is_no_nar_of_its_hash_is_refused_and_leaves_nothing() {
    let kept = Kept::new();
    let served = kept.serve_writable();
    let put = |bytes: &[u8], ending: &str| {
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        let at = format!("/nar/{}.nar{ending}", encode_base32(&hash));
        served.send("PUT", &at, &[], bytes)
    };
    let whole = nar(&tree(), &kept.runtime);
    let packed = compress(&whole, "xz");
    let twice = compress(&compress(&whole, "gzip"), "xz");
    let trailing = [&whole[..], b"x"].concat();
    for (bytes, ending) in [
        (&b"no NAR"[..], ""),
        (&whole[..whole.len() - 8], ""),
        (&packed[..packed.len() / 2], ".xz"),
        (&packed, ".zst"),
        (&twice, ".xz"),
        (&trailing, ""),
        (b"", ""),
    ] {
        let answer = put(bytes, ending);
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    let at = format!("/nar/{}.nar", encode_base32(&[1; 32]));
    let answer = served.send("PUT", &at, &[], &whole);
    assert!(answer.text().contains("SHA-256"), "{answer:?}");
    for other in ["/log/x.drv", "/realisations/x.doi", "/debuginfo/x"] {
        assert_eq!(served.send("PUT", other, &[], b"x").status, 404, "{other}");
    }
    let listing = format!("/{}.ls", path('1', "x").hash());
    assert_eq!(served.send("PUT", &listing, &[], b"{}").status, 201);
    assert_eq!(kept.store.usage().unwrap().unwrap().blobs, 0);
    let remaining: Vec<_> = std::fs::read_dir(kept.store.dir().join("tmp"))
        .map(|found| found.collect())
        .unwrap_or_default();
    assert_eq!(remaining.len(), 0);
}

#[test]
fn uploads_have_an_end_and_leave_the_disk_what_is_to_stay_free() {
    let kept = Kept::new();
    let limited = |limits: ServerLimits| {
        kept.serve(ServerOptions {
            local: Some(kept.store.clone()),
            limits,
            ..writable()
        })
    };
    let bomb = directory([("zeros", file(vec![0; 4 << 20]))]);
    let bomb = upload_of(&kept, &path('1', "bomb"), &bomb, "xz");
    assert!(bomb.bytes.len() < 1 << 20);
    let served = limited(ServerLimits {
        upload: 1 << 20,
        ..ServerLimits::default()
    });
    let answer = bomb.put_nar(&served);
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text().contains("at most 1048576 bytes"));
    let long = upload_of(&kept, &path('2', "long"), &tree(), "none");
    assert_eq!(long.put_nar(&served).status, 413);
    drop(served);
    let served = limited(ServerLimits {
        disk: Some(kept.store.dir().to_owned()),
        keep_free: u64::MAX,
        ..ServerLimits::default()
    });
    let answer = long.put_nar(&served);
    assert!(answer.text().contains("are to stay free"), "{answer:?}");
    drop(served);
    assert_eq!(kept.store.usage().unwrap().unwrap().blobs, 0);
    // A client that sends nothing more is not waited for.
    let served = limited(ServerLimits {
        silence: Duration::from_millis(300),
        ..ServerLimits::default()
    });
    let at = format!("/{}", long.narinfo.url);
    let answer = served.send_part(&at, long.bytes.len(), &long.bytes[..100_000]);
    assert_eq!(answer.status, 504, "{answer:?}");
}

#[test]
fn only_tokens_with_the_right_add() {
    let kept = Kept::new();
    let upload = upload_of(&kept, &path('1', "top"), &tree(), "none");
    let served = kept.serve(options());
    let answer = upload.put_nar(&served);
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("read-only"));
    drop(served);
    // Tokens do not travel in the clear.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let tokens = AcceptedTokens::parse(b"reader read\nwriter add\nowner read replace\n").unwrap();
    let served = Served::at_socket(
        Arc::new(kept.store.clone()),
        &socket,
        ServerOptions {
            tokens: Some(tokens),
            local: Some(kept.store.clone()),
            ..writable()
        },
    );
    let login = |token: &str| {
        let login = data_encoding::BASE64.encode(format!("nix:{token}").as_bytes());
        format!("Basic {login}")
    };
    let put = |token: &str, path: &str, bytes: &[u8]| {
        served.send("PUT", path, &[("Authorization", &login(token))], bytes)
    };
    let at = format!("/{}", upload.narinfo.url);
    let named = format!("/{}.narinfo", upload.narinfo.path.hash());
    let text = upload.narinfo.to_text();
    let refused = served.send("PUT", &at, &[], &upload.bytes);
    assert_eq!(refused.status, 401);
    assert!(refused.header("www-authenticate").is_some());
    assert_eq!(put("wrong", &at, &upload.bytes).status, 401);
    assert_eq!(put("reader", &at, &upload.bytes).status, 403);
    assert_eq!(put("writer", &at, &upload.bytes).status, 201);
    assert_eq!(put("writer", &named, text.as_bytes()).status, 201);
    let get = |token: &str| served.ask("GET", &named, &[("Authorization", &login(token))]);
    assert_eq!(get("reader").status, 200);
    assert_eq!(get("writer").status, 403);
    let other = upload_of(&kept, &path('1', "top"), &file("other"), "none");
    let other_at = format!("/{}", other.narinfo.url);
    assert_eq!(put("writer", &other_at, &other.bytes).status, 201);
    let other_text = other.narinfo.to_text();
    assert_eq!(put("writer", &named, other_text.as_bytes()).status, 409);
    assert_eq!(put("owner", &named, other_text.as_bytes()).status, 201);
    let there = NarinfoFile::parse(&get("reader").body).unwrap();
    assert_eq!(there.nar, other.narinfo.nar);
}

#[test]
fn a_store_that_is_not_local_takes_uploads_too_and_signs() {
    let kept = Kept::new();
    let mut options = writable();
    options.binary_cache = Some(BinaryCacheOptions {
        secret_key: Some(Arc::new(secret_key("ours-1", 3))),
        ..BinaryCacheOptions::default()
    });
    let served = Served::start(Arc::new(MemoryStore::new()), options);
    let path = path('1', "top");
    let mut upload = upload_of(&kept, &path, &tree(), "gzip");
    upload.narinfo.references.clear();
    assert_eq!(upload.put_nar(&served).status, 201);
    assert_eq!(upload.put_narinfo(&served).status, 201);
    let there = served.narinfo(&path);
    assert!(there.is_signed_by(&[secret_key("ours-1", 3).public()]));
}
