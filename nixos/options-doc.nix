# The text of docs/nixos-options.md, from the options that the modules declare.
{ lib, options }:

let
  shown = lib.filter (
    option: option.visible && !option.internal && lib.hasPrefix "services.castore-fs" option.name
  ) (lib.optionAttrSetToDocList options);

  # NixOS's manual marks what a word is; Markdown has code, and that is all.
  plain =
    text:
    lib.trim (
      lib.replaceStrings [ "{option}`" "{file}`" "{command}`" ] [ "`" "`" "`" ] (text.text or text)
    );

  value =
    label: v:
    let
      text = plain v;
    in
    if (v._type or "") == "literalMD" then
      "${label}: ${text}\n"
    else if lib.hasInfix "\n" text then
      "${label}:\n\n```nix\n${text}\n```\n"
    else
      "${label}: `${text}`\n";

  section =
    option:
    lib.concatStringsSep "\n" (
      [
        "## `${option.name}`\n"
        "${plain option.description}\n"
        "Type: ${option.type}\n"
      ]
      ++ lib.optional (option ? default) (value "Default" option.default)
      ++ lib.optional (option ? example) (value "Example" option.example)
    );

  intro = ''
    # NixOS options

    <!-- Generated from nixos/*.nix: `tests/nix/evaluate --write LIB`; tested to be current. -->

    The module is `nixosModules.default`, and for `services.castore-fs.guest` it is `nixosModules.guest`.
    [nixos.md](nixos.md) has complete configurations.
  '';
in
lib.concatStringsSep "\n" ([ intro ] ++ map section shown)
