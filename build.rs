//! Generates the protobuf messages with a Rust compiler, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sources = ["proto/castore.proto", "proto/store.proto"];
    for source in sources {
        println!("cargo:rerun-if-changed={source}");
    }
    let descriptors = protox::compile(sources, ["proto"])?;
    prost_build::Config::new()
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
