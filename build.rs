//! Generates the protobuf messages and services with a Rust compiler, so that no `protoc` is
//! needed.
//!
//! The services exist in two generations that differ in nothing but the package in their methods'
//! paths. Code is generated for the current one alone: client and server rewrite paths (see
//! `src/proto/generation.rs`). The descriptor set that gRPC reflection serves names both.

use std::path::PathBuf;

use prost_types::{FileDescriptorProto, FileDescriptorSet};

const MESSAGES: [&str; 3] = [
    "proto/castore.proto",
    "proto/store.proto",
    "proto/castore_fs.proto",
];
/// What is asked of others by rules of theirs: no part of what is served here.
const OPENTELEMETRY: &str = "proto/opentelemetry.proto";
const SERVICES: [&str; 2] = ["proto/castore_services.proto", "proto/store_services.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for source in MESSAGES.iter().chain(&SERVICES).chain([&OPENTELEMETRY]) {
        println!("cargo:rerun-if-changed={source}");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let mut all = protox::compile(MESSAGES.iter().chain(&SERVICES), ["proto"])?;
    // A Directory on the wire is its bytes, both ways: prost must not take it apart.
    let services = out.join("services");
    std::fs::create_dir_all(&services)?;
    let mut service_files = all.clone();
    for file in &mut service_files.file {
        if file.package() != "castore_fs.v1" {
            file.message_type.clear();
            file.enum_type.clear();
        } else {
            file.message_type.clear();
        }
    }
    let mut config = prost_build::Config::new();
    config
        .extern_path(".snix.castore.v1.Directory", "crate::proto::RawDirectory")
        .extern_path(".snix.castore.v1", "crate::proto::castore::v1")
        .extern_path(".snix.store.v1", "crate::proto::store::v1")
        .extern_path(".castore_fs.v1", "crate::proto::castore_fs::v1")
        .out_dir(&services);
    tonic_prost_build::configure()
        .out_dir(&services)
        .compile_fds_with_config(service_files, config)?;

    let mut messages = all.clone();
    for file in &mut messages.file {
        file.service.clear();
    }
    prost_build::Config::new()
        .bytes(["."])
        .compile_fds(messages)?;

    let older: Vec<_> = all.file.iter().filter_map(older_generation).collect();
    all.file.extend(older);
    write_descriptors(&all, out.join("descriptors.binpb"))?;

    let opentelemetry = out.join("opentelemetry");
    std::fs::create_dir_all(&opentelemetry)?;
    tonic_prost_build::configure()
        .out_dir(opentelemetry)
        .compile_fds(protox::compile([OPENTELEMETRY], ["proto"])?)?;
    Ok(())
}

/// The same services under the older package name, with the same messages.
fn older_generation(file: &FileDescriptorProto) -> Option<FileDescriptorProto> {
    let package = file.package().strip_prefix("snix.")?;
    (!file.service.is_empty()).then(|| FileDescriptorProto {
        name: Some(format!("tvix_{}", file.name())),
        package: Some(format!("tvix.{package}")),
        ..file.clone()
    })
}

fn write_descriptors(
    set: &FileDescriptorSet,
    path: PathBuf,
) -> Result<(), Box<dyn std::error::Error>> {
    use prost::Message;
    std::fs::write(path, set.encode_to_vec())?;
    Ok(())
}
