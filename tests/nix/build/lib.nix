# The little that nixos/package.nix takes of nixpkgs' `lib`, with the meaning that it has there.
let
  inherit (builtins) stringLength substring;
  hasPrefix = start: text: substring 0 (stringLength start) text == start;
  hasSuffix =
    end: text:
    let
      before = stringLength text - stringLength end;
    in
    before >= 0 && substring before (stringLength end) text == end;

  # Of a file set: whether a file is in it, and whether it is worth to look into a directory.
  ofPath =
    path:
    if !builtins.pathExists path then
      throw "the file set names ${toString path}, which does not exist"
    else
      let
        text = toString path;
      in
      rec {
        has = file: file == text || hasPrefix "${text}/" file;
        reaches = directory: has directory || hasPrefix "${directory}/" text;
      };
  fileSet = value: if builtins.isAttrs value then value else ofPath value;
in
{
  importTOML = file: builtins.fromTOML (builtins.readFile file);
  optionalString = condition: text: if condition then text else "";
  getExe = package: "${package}/bin/${package.meta.mainProgram}";
  inherit hasSuffix;
  removeSuffix =
    end: text:
    if hasSuffix end text then substring 0 (stringLength text - stringLength end) text else text;

  fileset = {
    unions = sets: {
      has = file: builtins.any (set: (fileSet set).has file) sets;
      reaches = directory: builtins.any (set: (fileSet set).reaches directory) sets;
    };
    difference =
      from: without:
      let
        all = fileSet from;
        less = fileSet without;
      in
      {
        has = file: all.has file && !less.has file;
        reaches = directory: all.reaches directory && !less.has directory;
      };
    toSource =
      { root, fileset }:
      builtins.path {
        path = root;
        name = "source";
        filter = path: type: if type == "directory" then fileset.reaches path else fileset.has path;
      };
  };

  licenses = {
    mit = null;
    asl20 = null;
  };
  platforms.linux = [ ];
}
