# Runs the cases of evaluation/cases.nix. `problems` is what did not come out as it should, one sentence
# each; `rendered` is what the module writes for those that it accepts, by case. `evaluate` takes modules and gives `{ config, options, … }`; what it makes of a unit
# is all that the modules say (`exact`), or NixOS adds words of its own.
{
  lib,
  evaluate,
  exact ? false,
}:

let
  cases = import ./evaluation/cases.nix;

  evaluated =
    case:
    evaluate [
      ../../nixos/module.nix
      ../../nixos/guest.nix
      (case.also or { })
      {
        services.castore-fs = lib.mkMerge [
          { enable = lib.mkDefault true; }
          case.services
        ];
      }
    ];
  configOf = case: (evaluated case).config;

  run =
    name: case:
    let
      config = configOf case;

      ours = lib.filter (
        a: !a.assertion && lib.hasPrefix "services.castore-fs" a.message
      ) config.assertions;
      messages = map (a: a.message) ours;
      unit = config.systemd.units."castore-fs.service".text;

      expected = lib.importTOML (./evaluation/expected + "/${case.rendered}.toml");
      json = builtins.toJSON;

      fired =
        if case.fires or null != null then
          lib.optional (lib.length messages != 1) (
            "one assertion has to fail, and not ${toString (lib.length messages)}: ${json messages}"
          )
          ++ map (words: "no assertion says ${json words}: ${json messages}") (
            lib.filter (words: !lib.any (lib.hasInfix words) messages) case.fires
          )
        else
          map (message: "fails: ${message}") messages;

      rendered = lib.optional (case ? rendered && config.services.castore-fs.rendered != expected) (
        "expected/${case.rendered}.toml is ${json expected}, and the module writes ${json config.services.castore-fs.rendered}"
      );

      checks = lib.concatLists (
        lib.imap1 (i: holds: lib.optional (!holds) "check ${toString i} does not hold") (
          (case.check or (_: [ ])) config
        )
      );

      units =
        map (line: "the unit has no ${json line}: ${json unit}") (
          lib.filter (line: !lib.hasInfix line unit) (case.unit or [ ])
        )
        ++ map (line: "the unit has ${json line}: ${json unit}") (
          lib.filter (line: lib.hasInfix "\n${line}" unit) (case.notUnit or [ ])
        );

      # A line of a comment says why. What triggers a reload has the hash of its contents in its name.
      said =
        text:
        lib.filter (
          line: line != "" && !lib.hasPrefix "#" line && !lib.hasPrefix "X-Reload-Triggers=" line
        ) (lib.splitString "\n" text);
      texts = lib.concatLists (
        lib.mapAttrsToList (
          unit: file:
          let
            wanted = said (builtins.readFile (./evaluation/expected + "/${file}.unit"));
            found = said (
              lib.replaceStrings [ "${config.services.castore-fs.package}" ] [ "@package@" ]
                config.systemd.units.${unit}.text
            );
          in
          map (line: "${unit} has no ${json line}: ${json found}") (lib.subtractLists found wanted)
          ++ lib.optionals exact (
            map (line: "${unit} has ${json line}, of which ${file}.unit says nothing") (
              lib.subtractLists wanted found
            )
          )
        ) (case.units or { })
      );

      threw = lib.optional ((builtins.tryEval (builtins.deepSeq (case.throws config) null)).success) "it evaluates, and should not";
    in
    map (what: "${name}: ${what}") (
      if case ? throws then threw else fired ++ rendered ++ checks ++ units ++ texts
    );

  # The manual of NixOS takes no chapter of a module outside of it: its headings have no ids that the manual
  # knows, and every `nixos-rebuild` would stop.
  chapters = lib.unique (
    lib.filter (lib.hasPrefix "${toString ../../nixos}/") (
      lib.concatMap (case: map toString (evaluated case).options.meta.doc.files) (
        lib.attrValues (lib.filterAttrs (_: case: !(case ? throws)) cases)
      )
    )
  );

  # The inputs of the package's build.
  package = import ../../nixos/package.nix {
    # The file set itself: nothing is copied into a store for it.
    lib = lib // {
      fileset = lib.fileset // {
        toSource = { fileset, ... }: fileset;
      };
    };
    stdenv = {
      buildPlatform.canExecute = _: true;
      hostPlatform = null;
    };
    rustPlatform.buildRustPackage = arguments: arguments;
    installShellFiles = "installShellFiles";
  };
  sources = map toString (lib.fileset.toList package.src);
  isSource = path: lib.any (file: file == path || lib.hasPrefix "${path}/" file) sources;
  manifest = (lib.importTOML ../../Cargo.toml).package;
  packaged =
    lib.optional (
      package.pname != "castore-fs" || package.version != manifest.version
    ) "is ${package.pname} ${package.version}, and Cargo.toml says ${manifest.name} ${manifest.version}"
    ++ lib.optional (package.meta.mainProgram != "castore-fs") "has not the program castore-fs"
    ++ map (path: "builds without ${path}") (
      lib.filter (path: !isSource (toString (../.. + "/${path}"))) [
        "Cargo.lock"
        "benches"
        "build.rs"
        "fuzz/seeds/profile"
        "proto"
        "src/main.rs"
        "systemd/castore-fs.service"
      ]
    )
    ++ map (path: "is built anew when ${path} changes") (
      lib.filter (path: isSource (toString (../.. + "/${path}"))) [
        ".git"
        "flake.nix"
        "nixos"
        "target"
        "tests/nixos"
        "tests/scenarios"
      ]
    );
in
{
  problems =
    lib.concatLists (lib.mapAttrsToList run cases)
    ++ map (file: "${toString file} adds a chapter to NixOS' manual") chapters
    ++ map (what: "the package ${what}") packaged;

  rendered = lib.mapAttrs (_: case: (configOf case).services.castore-fs.rendered) (
    lib.filterAttrs (
      _: case:
      case.fires or null == null && !(case ? throws || case ? refused) && case.services.enable or true
    ) cases
  );

  # What the daemon has to refuse, and its words.
  refused = lib.mapAttrs (_: case: {
    inherit ((configOf case).services.castore-fs) rendered;
    words = case.refused;
  }) (lib.filterAttrs (_: case: case ? refused) cases);

  # By case, the units and the table of file systems as NixOS would write them, for systemd to verify.
  # Packages have a path that is the same everywhere.
  units = lib.mapAttrs (
    _: case:
    let
      config = configOf case;
    in
    lib.mapAttrs (_: unit: unit.whole) config.systemd.units
    // lib.optionalAttrs (config.fileSystems != { }) { fstab = config.environment.etc.fstab.text; }
  ) (lib.filterAttrs (_: case: case.verified or false) cases);

  count = lib.length (lib.attrNames cases);
}
